package store

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const writerDirEnv = "FAASD_SEC_TEST_WRITER_DIR"

// writeUntilKilled is the child process: it tells of each write once it was
// acknowledged, until it is killed.
func writeUntilKilled(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Open(ctx, DefaultConfig(dir, slog.New(slog.NewTextHandler(os.Stderr, nil))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for i := uint64(0); ; i++ {
		name := fmt.Sprintf("f%d", i%50)
		if _, err := s.PutFunction(ctx, fn(name, i), AnyVersion); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		fmt.Println(i)
	}
}

func TestAcknowledgedWritesSurviveKill(t *testing.T) {
	dir := t.TempDir()
	last := map[api.FunctionName]uint64{}
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		child := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), writerDirEnv+"="+dir)
		child.Stderr = t.Output()
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		acked := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var i uint64
			if _, err := fmt.Sscan(lines.Text(), &i); err != nil {
				t.Fatal(err)
			}
			last[fn(fmt.Sprintf("f%d", i%50), i).Name] = i
			if acked++; acked == 200+round*37 {
				child.Process.Kill() // SIGKILL; the pipe still holds what was said before
			}
		}
		child.Wait()
		if acked < 200 {
			t.Fatalf("only %d writes were acknowledged", acked)
		}

		s, err := Open(t.Context(), testConfig(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		for name, seq := range last {
			f, err := s.GetFunction(t.Context(), name)
			if err != nil {
				t.Fatalf("round %d: acknowledged function %s: %v", round, name, err)
			}
			// One write more may have happened without its acknowledgement.
			if f.Sequence != seq && f.Sequence != seq+50 {
				t.Fatalf("round %d: %s has sequence %d, acknowledged was %d", round, name, f.Sequence, seq)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
