package containerd

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/runtime"
)

func TestAPreparedTmpfsBecomesTheFunctions(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs root, and REQUIRE_ALL=1")
		}
		t.Skip("needs root")
	}
	const base = 5 << 16
	usual := ownTmpfs{runtime.Tmpfs{Path: "/x", Bytes: 1 << 20}, "0700", true}
	for _, size := range []int64{1 << 20, 4096, 3<<20 + 1, 64 << 20} {
		fd, err := usual.mount(base, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		want := usual
		want.Bytes = size
		err = want.adapt(fd, base, 1000, 1001)
		fresh, ferr := want.mount(base, 1000, 1001)
		if err != nil || ferr != nil {
			t.Fatal(err, ferr)
		}
		type facts struct {
			blocks, files uint64
			flags         int64
			uid, gid      uint32
			mode          uint32
		}
		look := func(fd int) facts {
			var fs unix.Statfs_t
			var st unix.Stat_t
			if err := unix.Fstatfs(fd, &fs); err != nil {
				t.Fatal(err)
			}
			if err := unix.Fstat(fd, &st); err != nil {
				t.Fatal(err)
			}
			return facts{fs.Blocks, fs.Files, fs.Flags, st.Uid, st.Gid, st.Mode}
		}
		if got, want := look(fd), look(fresh); got != want {
			t.Errorf("%d bytes: %+v, want %+v as of a new one", size, got, want)
		}
		for _, fd := range []int{fd, fresh} {
			_ = unix.Close(fd)
		}
	}
}
