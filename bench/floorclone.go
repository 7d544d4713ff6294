package main

import (
	"context"
	"os/exec"
	"syscall"
)

// cloneFloor starts a program in namespaces of its own, with nothing of a
// container but those: what the kernel takes for a clone, the namespaces, an
// exec and the program's own way to its first byte. A user namespace is left
// out: with one Go copies this process's page tables, where else it does not,
// and a floor should rather be too low.
type cloneFloor struct {
	bell *doorbell
}

func (f *cloneFloor) start(ctx context.Context, file string) error {
	cmd := exec.CommandContext(ctx, file)
	cmd.Env = []string{dialEnv + "=" + f.bell.path()}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
		syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWCGROUP}
	if err := cmd.Start(); err != nil {
		return err
	}
	c, err := f.bell.rung(ctx)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	// The program's end is not part of a start, but the next trial should not
	// meet it: it ends on its own once the connection is closed.
	c.Close()
	go func() { _ = cmd.Wait() }() // reaps it; ends with it
	return nil
}
