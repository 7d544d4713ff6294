package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"
)

// programsHere are the small programs that this machine can run, by how they are made.
func programsHere(t *testing.T) map[string][]string {
	t.Helper()
	dir := t.TempDir()
	out := map[string][]string{}
	c, err := makeC(t.Context(), filepath.Join(dir, "c"))
	if err != nil {
		t.Fatal(err)
	}
	if c != nil {
		out[c.made] = []string{c.file}
	}
	if goruntime.GOARCH == "amd64" {
		tiny := filepath.Join(dir, "tiny")
		if err := writeTiny(tiny); err != nil {
			t.Fatal(err)
		}
		out["hand-assembled"] = []string{tiny}
	}
	if python, err := exec.LookPath("python3"); err == nil {
		script := filepath.Join(dir, "echo.py")
		if err := os.WriteFile(script, echoPython, 0o644); err != nil {
			t.Fatal(err)
		}
		out["python"] = []string{python, script}
	}
	return out
}

func TestSmallProgramsAnswerOnTheHandedSocket(t *testing.T) {
	for made, argv := range programsHere(t) {
		t.Run(made, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			f, err := ln.(*net.UnixListener).File()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
			cmd.ExtraFiles = []*os.File{f}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			f.Close()
			for range 2 { // a second connection, after the first is over
				conn, err := net.Dial("unix", path)
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				br := bufio.NewReader(conn)
				for range 2 {
					if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
						t.Fatal(err)
					}
					res, err := http.ReadResponse(br, nil)
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(res.Body); err != nil || string(b) != "hello" {
						t.Fatalf("answered %q, %v", b, err)
					}
				}
				conn.Close()
			}
		})
	}
}

func TestSmallProgramsDialWhenTold(t *testing.T) {
	for made, argv := range programsHere(t) {
		t.Run(made, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
			cmd.Env = []string{"FIRST=1", dialEnv + "=" + path, "LAST=1"}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if err := ln.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			conn, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if err := first(conn); err != nil {
				t.Fatalf("first byte: %v", err)
			}
			conn.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("after the end of the connection: %v", err)
			}
		})
	}
}
