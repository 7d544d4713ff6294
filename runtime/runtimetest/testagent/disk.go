package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// fill writes until there is no more room, and prints how many bytes there were.
func fill(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	var total int64
	for {
		n, err := f.Write(b)
		if total += int64(n); err != nil {
			fmt.Println("filled", total)
			return err
		}
		if total > 1<<32 {
			return fmt.Errorf("no end at %d bytes", total)
		}
	}
}

// put prints for how long the disk took, in milliseconds.
func put(path, word, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	start := time.Now()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte(word), n)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	fmt.Println("ms", time.Since(start).Milliseconds())
	return f.Close()
}

// take is put for reading: nothing of the file is in memory before.
func take(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	start := time.Now()
	n, err := io.Copy(io.Discard, f)
	if err != nil {
		return err
	}
	fmt.Println("bytes", n)
	fmt.Println("ms", time.Since(start).Milliseconds())
	return nil
}
