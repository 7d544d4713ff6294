package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// once is the function as a process for one request: body in, reply out.
func once(what string) (exit int) {
	switch what {
	case "sleep":
		time.Sleep(time.Minute)
	case "cat":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			return 1
		}
	case "upper":
		b, err := io.ReadAll(os.Stdin)
		if err != nil {
			return 1
		}
		os.Stdout.Write(bytes.ToUpper(b))
	case "environ":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "fail":
		fmt.Print("half a reply")
		fmt.Fprintln(os.Stderr, "the reason")
		return 3
	case "oom":
		oom(nil, nil)
	default:
		return 2
	}
	return 0
}

// fill writes to ?path= until the file system is full, says how much went in
// and what the kernel said, and removes the file.
func fill(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Query().Get("path")
	f, err := os.Create(path)
	if err != nil {
		fmt.Fprintf(w, "0 %v", err)
		return
	}
	defer os.Remove(path)
	defer f.Close()
	block, written := make([]byte, 64<<10), 0
	for written < 1<<30 {
		n, err := f.Write(block)
		written += n
		if err != nil {
			fmt.Fprintf(w, "%d %v", written, err)
			return
		}
	}
	fmt.Fprintf(w, "%d no limit", written)
}
