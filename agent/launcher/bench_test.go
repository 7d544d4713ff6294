package launcher

import (
	"os"
	"syscall"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// BenchmarkBindToExec is what a cold start waits for: a blank launcher enters and
// its function's process executes.
func BenchmarkBindToExec(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for b.Loop() {
		b.StopTimer()
		l := startBlank(b)
		b.StartTimer()
		entered := l.Enter(b.Context(), EnterOptions{Root: "/", UID: api.FunctionID, GID: api.FunctionID, FilterOptions: FilterOptions{DenyInet: true}})
		p, err := l.StartProcess(b.Context(), Spec{Argv: []string{"/bin/true"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null, Listen: null})
		if err := entered(); err != nil {
			b.Fatal(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		<-p.Done()
		l.Close()
		if _, err := syscall.Wait4(l.PID, nil, 0, nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkStartToExit is a process per request.
func BenchmarkStartToExit(b *testing.B) {
	l := startBlank(b)
	if err := l.Enter(b.Context(), EnterOptions{Root: "/", UID: api.FunctionID, GID: api.FunctionID})(); err != nil {
		b.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for b.Loop() {
		p, err := l.StartProcess(b.Context(), Spec{Argv: []string{"/bin/true"}, Dir: "/", Stdin: null, Stdout: null, Stderr: null})
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
	}
}
