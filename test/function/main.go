// Command function is what the end-to-end tests deploy: it serves HTTP and
// misbehaves on request, one way for each path.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "watchdog" {
		os.Exit(watchdog())
	}
	if len(os.Args) > 1 && os.Args[1] != "serve" {
		os.Exit(once(os.Args[1]))
	}
	ln, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", echo)
	mux.HandleFunc("/hash", hash)
	mux.HandleFunc("/events", events)
	mux.HandleFunc("/step", step)
	mux.HandleFunc("/shout", shout)
	mux.HandleFunc("/write", write)
	mux.HandleFunc("/heads", heads)
	mux.HandleFunc("/mode", mode)
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere?x=1", http.StatusFound) })
	mux.HandleFunc("/_/ready", http.NotFound)
	mux.HandleFunc("/_/health", http.NotFound)
	mux.HandleFunc("/upper", upper)
	mux.HandleFunc("/env", env)
	mux.HandleFunc("/read", read)
	mux.HandleFunc("/derive", derive)
	mux.HandleFunc("/oom", oom)
	mux.HandleFunc("/spin", spin)
	mux.HandleFunc("/fork", fork)
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/silent", silent)
	mux.HandleFunc("/fill", fill)
	mux.HandleFunc("/dial", dial)
	mux.HandleFunc("/put", put)
	mux.Handle("/once", new(ran))
	mux.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) { os.Exit(3) })
	mux.HandleFunc("/log", func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Println("out", string(b))
		fmt.Fprintln(os.Stderr, "err", string(b))
	})
	log.Fatal(http.Serve(ln, mux))
}

// listen takes the socket the agent hands over, or port 8080.
func listen() (net.Listener, error) {
	if os.Getenv("LISTEN_FDS") == "1" {
		return net.FileListener(os.NewFile(3, "listen"))
	}
	if port := os.Getenv("serve_on"); port != "" { // behind a watchdog
		return net.Listen("tcp", "127.0.0.1:"+port)
	}
	return net.Listen("tcp", "127.0.0.1:8080")
}

// put writes the body into a file, and on the disk.
func put(w http.ResponseWriter, r *http.Request) {
	f, err := os.Create(r.URL.Query().Get("path"))
	if err == nil {
		_, err = io.Copy(f, r.Body)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInsufficientStorage)
	}
}

// dial says whether the TCP address it is given can be reached.
func dial(w http.ResponseWriter, r *http.Request) {
	c, err := net.DialTimeout("tcp", r.URL.Query().Get("to"), 1500*time.Millisecond)
	if err != nil {
		fmt.Fprint(w, err)
		return
	}
	c.Close()
	fmt.Fprint(w, "reached")
}

// echo replies with what it was sent, and how it came. Without full duplex
// net/http drops up to 256 KiB of the request once the reply begins to flow.
func echo(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	w.Header().Set("X-Echo-Method", r.Method)
	w.Header().Set("X-Echo-Path", r.URL.Path)
	w.Header().Set("X-Echo-Query", r.URL.RawQuery)
	w.Header().Set("X-Echo-Header", r.Header.Get("X-Test"))
	if _, err := io.Copy(w, r.Body); err != nil {
		panic(http.ErrAbortHandler) // a reply cut short must not look whole
	}
}

func hash(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%d %s", n, hex.EncodeToString(h.Sum(nil)))
}

// upper answers while it still reads.
func upper(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, werr := w.Write([]byte(strings.ToUpper(string(buf[:n])))); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func env(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(os.Environ())
}

func read(w http.ResponseWriter, r *http.Request) {
	b, err := os.ReadFile(r.URL.Query().Get("path"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	w.Write(b)
}

// derive makes two values out of files that it was given, one to answer and one
// to print, that were in no message before.
func derive(w http.ResponseWriter, r *http.Request) {
	secret, err := os.ReadFile(r.URL.Query().Get("secret"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	code, err := os.ReadFile(r.URL.Query().Get("code"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	sum := func(label string) string {
		h := sha256.Sum256([]byte(label + "|" + string(secret) + "|" + string(code)))
		return hex.EncodeToString(h[:16])
	}
	fmt.Println("derived", sum("log"))
	fmt.Fprint(w, sum("reply"))
}

// oom takes memory until it is killed.
func oom(http.ResponseWriter, *http.Request) {
	var hold [][]byte
	for {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		hold = append(hold, b)
		_ = hold
	}
}

// spin uses every processor for ?ms= and reports the CPU time it got.
func spin(w http.ResponseWriter, r *http.Request) {
	ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
	until := time.Now().Add(time.Duration(ms) * time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			x := 1
			for time.Now().Before(until) {
				for range 10000 {
					x = x*31 + 7
				}
			}
			_ = x
		}()
	}
	wg.Wait()
	fmt.Fprintln(w, "done")
}

// fork starts processes until the kernel refuses, and says how many it got.
func fork(w http.ResponseWriter, _ *http.Request) {
	var started []*exec.Cmd
	defer func() {
		for _, c := range started {
			c.Process.Kill()
			c.Wait()
		}
	}()
	for len(started) < 10000 {
		c := exec.Command("/proc/self/exe", "sleep")
		if err := c.Start(); err != nil {
			fmt.Fprintf(w, "%d: %v", len(started), err)
			return
		}
		started = append(started, c)
	}
	fmt.Fprintf(w, "%d: no limit", len(started))
}

func sleep(w http.ResponseWriter, r *http.Request) {
	ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-r.Context().Done():
	}
	fmt.Fprint(w, "slept")
}
