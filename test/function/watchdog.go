package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// watchdog stands for the programs of OpenFaaS that are in its functions' images:
// it obeys the contract that they obey, by the same environment, in as many lines
// as that takes. mode is http (a server behind upstream_url), static, or one
// process for each request otherwise.
func watchdog() int {
	w := &dog{argv: strings.Fields(os.Getenv("fprocess")), most: atoi(os.Getenv("max_inflight"))}
	mux := http.NewServeMux()
	mux.HandleFunc("/_/health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/_/ready", w.ready)
	switch os.Getenv("mode") {
	case "http":
		to, err := url.Parse(os.Getenv("upstream_url"))
		if err != nil {
			log.Print(err)
			return 1
		}
		child := exec.Command(w.argv[0], w.argv[1:]...)
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if err := child.Start(); err != nil {
			log.Print(err)
			return 1
		}
		mux.Handle("/", w.limited(httputil.NewSingleHostReverseProxy(to)))
	case "static":
		mux.Handle("/", w.limited(http.FileServer(http.Dir(os.Getenv("static_path")))))
	default:
		mux.Handle("/", w.limited(http.HandlerFunc(w.fork)))
	}
	s := &http.Server{Addr: ":8080", Handler: mux}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		fmt.Println("SIGTERM received")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
	}()
	if err := s.ListenAndServe(); err != http.ErrServerClosed {
		log.Print(err)
		return 1
	}
	return 0
}

type dog struct {
	argv   []string
	most   int
	flying atomic.Int64
	asked  atomic.Int64
}

// ready is not so until it was asked three times.
func (d *dog) ready(w http.ResponseWriter, _ *http.Request) {
	if d.asked.Add(1) < 3 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func (d *dog) limited(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := d.flying.Add(1); d.most > 0 && n > int64(d.most) {
			d.flying.Add(-1)
			http.Error(w, "concurrent limit reached", http.StatusTooManyRequests)
			return
		}
		defer d.flying.Add(-1)
		h.ServeHTTP(w, r)
	})
}

// fork runs the process with the request as its input and its environment.
func (d *dog) fork(w http.ResponseWriter, r *http.Request) {
	fmt.Println("Forking fprocess.")
	ctx := r.Context()
	if t, err := time.ParseDuration(os.Getenv("exec_timeout")); err == nil && t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, d.argv[0], d.argv[1:]...)
	cmd.Stdin = r.Body
	cmd.Env = append(os.Environ(), "Http_Method="+r.Method, "Http_Path="+r.URL.Path, "Http_Query="+r.URL.RawQuery)
	for k, v := range r.Header {
		cmd.Env = append(cmd.Env, "Http_"+strings.ReplaceAll(k, "-", "_")+"="+v[0])
	}
	streaming := os.Getenv("mode") == "streaming"
	var out bytes.Buffer
	cmd.Stderr, cmd.Stdout = os.Stderr, &out
	if streaming {
		cmd.Stdout = flushing{w}
	}
	if err := cmd.Run(); err != nil {
		if !streaming {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	if !streaming {
		w.Write(out.Bytes())
		fmt.Printf("Wrote %d Bytes\n", out.Len())
	}
}

// flushing sends what is written at once.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// events sends ?n= events, each when a request to /step says so.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	flush := w.(http.Flusher)
	flush.Flush()
	for i := range atoi(r.URL.Query().Get("n")) {
		select {
		case <-steps:
		case <-r.Context().Done():
			return
		}
		fmt.Fprintf(w, "data: %d\n\n", i)
		flush.Flush()
	}
}

// steps are what events waits for.
var steps = make(chan struct{}, 100)

func step(http.ResponseWriter, *http.Request) { steps <- struct{}{} }

// shout goes over to a protocol in which lines come back in upper case.
func shout(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" {
		http.Error(w, "upgrade", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", r.Header.Get("Sec-WebSocket-Key"))
	for lines := bufio.NewScanner(rw); ; {
		if rw.Flush() != nil || !lines.Scan() {
			return
		}
		fmt.Fprintln(rw, strings.ToUpper(lines.Text()))
	}
}

// write puts the body into ?path=.
func write(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	if err := os.WriteFile(r.URL.Query().Get("path"), b, 0o600); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	fmt.Fprintf(w, "%d:%d", os.Getuid(), os.Getgid())
}

// heads answers with the request's headers.
func heads(w http.ResponseWriter, r *http.Request) {
	for k, v := range r.Header {
		fmt.Fprintf(w, "%s: %s\n", k, v[0])
	}
}

// mode prints a file's permissions and owner.
func mode(w http.ResponseWriter, r *http.Request) {
	info, err := os.Stat(r.URL.Query().Get("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	fmt.Fprintf(w, "%o %d %d", info.Mode().Perm(), info.Sys().(*syscall.Stat_t).Uid, os.Getuid())
}
