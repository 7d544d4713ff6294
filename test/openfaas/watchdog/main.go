// Command watchdog is the image of the conformance tests: a watchdog in classic
// mode, which serves HTTP on :8080 and runs the program in the environment variable
// fprocess for each request. Under other names it is the programs that the tests
// run: env, cat, sha512sum, sleep, false, flaky, redirect, crash. More variables:
//
//	die          it ends before it serves
//	ready_after  how long /_/ready says that it is not yet
//	linger       how long it stays after it was asked to end and has nothing to do; meanwhile its
//	             command line is that of sleep
package main

import (
	"bytes"
	"context"
	"crypto/sha512"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
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
	case "flaky": // fails the first times
		n, err := strconv.Atoi(os.Getenv("Fork_Number"))
		if err != nil {
			return err
		}
		if most, err := strconv.Atoi(args[0]); err != nil || n <= most {
			return fmt.Errorf("it failed, %d of %s, %v", n, args[0], err)
		}
		fmt.Println(n)
		return nil
	case "redirect":
		http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, os.Getenv("destination"), http.StatusFound)
		})
		return http.ListenAndServe(":8080", nil)
	}
	return watch()
}

// began is when this process did, forks how many requests it ran a program for.
var (
	began = time.Now()
	forks atomic.Int64
)

// watch serves until it is told to end, and then ends what is under way first.
func watch() error {
	if os.Getenv("die") != "" {
		return fmt.Errorf("it does not serve")
	}
	if os.Getenv("fprocess") == "redirect" {
		return run("redirect", nil)
	}
	late, err := duration("ready_after")
	if err != nil {
		return err
	}
	linger, err := duration("linger")
	if err != nil {
		return err
	}
	http.HandleFunc("/_/health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") })
	http.HandleFunc("/_/ready", func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(began) < late {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "OK")
	})
	http.HandleFunc("/", fork)
	s := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	served := make(chan error, 1)
	go func() { served <- s.ListenAndServe() }()
	select {
	case err := <-served:
		return err
	case <-stop:
	}
	say("SIGTERM received.")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return err
	}
	if linger > 0 {
		return syscall.Exec("/usr/bin/watchdog", []string{"sleep", linger.String()}, os.Environ())
	}
	return nil
}

// duration is that of a variable, 0 if it is not there.
func duration(name string) (time.Duration, error) {
	s := os.Getenv(name)
	if s == "" {
		return 0, nil
	}
	return time.ParseDuration(s)
}

// say writes a line of the log as OpenFaaS's watchdog does.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("2006/01/02 15:04:05")+" "+format+"\n", args...)
}

func fork(w http.ResponseWriter, r *http.Request) {
	argv := strings.Fields(os.Getenv("fprocess"))
	if len(argv) == 0 {
		argv = []string{"cat"}
	}
	say("Forking fprocess.")
	if argv[0] == "crash" {
		os.Exit(7)
	}
	forked := time.Now()
	cmd := exec.CommandContext(r.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "Http_Method="+r.Method, "Http_Query="+r.URL.RawQuery, "Http_Path="+r.URL.Path)
	for k, v := range r.Header {
		cmd.Env = append(cmd.Env, "Http_"+strings.ReplaceAll(k, "-", "_")+"="+v[0])
	}
	cmd.Env = append(cmd.Env, "Http_Host="+r.Host, "Watchdog_Age="+forked.Sub(began).String(), "Fork_Number="+strconv.FormatInt(forks.Add(1), 10))
	cmd.Stdin = r.Body
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Write(out.Bytes())
	say("Wrote %d Bytes - Duration: %fs", out.Len(), time.Since(forked).Seconds())
}
