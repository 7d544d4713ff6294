package samehost

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// connectAs makes another user's process connect to a socket. It is perl's or
// python's, whichever there is: a Go test binary lies in a directory that other
// users may not enter.
func connectAs(t *testing.T, path string, uid uint32) {
	t.Helper()
	for _, c := range [][]string{
		{"perl", "-MSocket", "-e", `socket(S,AF_UNIX,SOCK_STREAM,0); connect(S,pack_sockaddr_un($ARGV[0])) or die "$!"; sysread(S,$b,1)`, path},
		{"python3", "-c", "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)", path},
	} {
		if _, err := exec.LookPath(c[0]); err != nil {
			continue
		}
		cmd := exec.Command(c[0], c[1:]...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.WaitDelay = 5 * time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", c[0], err, out)
		}
		return
	}
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal("needs perl or python3")
	}
	t.Skip("needs perl or python3")
}
