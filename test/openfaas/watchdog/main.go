// Command watchdog is the image of the conformance tests: a watchdog in classic
// mode, which serves HTTP on :8080 and runs the program in the environment variable
// fprocess for each request. Under other names it is the programs that the tests
// run: env, cat, sha512sum, sleep, false, redirect.
package main

import (
	"bytes"
	"crypto/sha512"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(filepath.Base(os.Args[0]), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
		return nil
	case "cat":
		if len(args) == 0 {
			_, err := io.Copy(os.Stdout, os.Stdin)
			return err
		}
		for _, a := range args {
			b, err := os.ReadFile(a)
			if err != nil {
				return err
			}
			os.Stdout.Write(b)
		}
		return nil
	case "sha512sum":
		b, err := io.ReadAll(os.Stdin)
		fmt.Printf("%x  -\n", sha512.Sum512(b))
		return err
	case "sleep":
		d, err := time.ParseDuration(args[0])
		time.Sleep(d)
		fmt.Println("slept")
		return err
	case "touch":
		return os.WriteFile(args[0], nil, 0o600)
	case "false":
		return fmt.Errorf("it failed")
	case "redirect":
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, os.Getenv("destination"), http.StatusFound)
		})
		return http.ListenAndServe(":8080", nil)
	}
	return watch()
}

// watch serves until it is told to end, and then ends what is under way first.
func watch() error {
	if os.Getenv("fprocess") == "redirect" {
		return run("redirect", nil)
	}
	healthy := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") }
	http.HandleFunc("/_/health", healthy)
	http.HandleFunc("/_/ready", healthy)
	http.HandleFunc("/", fork)
	s := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() { <-stop; s.Close() }()
	if err := s.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func fork(w http.ResponseWriter, r *http.Request) {
	argv := strings.Fields(os.Getenv("fprocess"))
	if len(argv) == 0 {
		argv = []string{"cat"}
	}
	fmt.Fprintln(os.Stderr, time.Now().Format("2006/01/02 15:04:05"), "Forking fprocess.")
	began := time.Now()
	cmd := exec.CommandContext(r.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "Http_Method="+r.Method, "Http_Query="+r.URL.RawQuery, "Http_Path="+r.URL.Path)
	for k, v := range r.Header {
		cmd.Env = append(cmd.Env, "Http_"+strings.ReplaceAll(k, "-", "_")+"="+v[0])
	}
	cmd.Env = append(cmd.Env, "Http_Host="+r.Host)
	cmd.Stdin = r.Body
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(out.Bytes())
	fmt.Fprintf(os.Stderr, "%s Wrote %d Bytes - Duration: %fs\n", time.Now().Format("2006/01/02 15:04:05"), out.Len(), time.Since(began).Seconds())
}
