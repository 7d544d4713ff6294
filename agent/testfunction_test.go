package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// serveTestFunction is a function for the tests, in a process of its own.
func serveTestFunction(args []string) int {
	if len(args) > 0 && args[0] == "fast" {
		ln, err := net.FileListener(os.NewFile(3, "listen"))
		if err == nil {
			err = fasthttp.Serve(ln, func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) })
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if len(args) == 0 || args[0] != "http" {
		fmt.Fprintln(os.Stderr, "unknown test function")
		return 2
	}
	var ln net.Listener
	var err error
	if fd := os.Getenv("FAASD_SEC_LISTEN_FD"); fd != "" {
		if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) || os.Getenv("LISTEN_FDS") != "1" {
			fmt.Fprintln(os.Stderr, "LISTEN_PID is not mine")
			return 3
		}
		n, _ := strconv.Atoi(fd)
		ln, err = net.FileListener(os.NewFile(uintptr(n), "listen"))
	} else {
		ln, err = net.Listen("tcp", args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("serving")
	if len(args) > 2 && args[2] == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	srv := &http.Server{Handler: http.HandlerFunc(testHandler)}
	fmt.Fprintln(os.Stderr, srv.Serve(ln))
	return 1
}

func testHandler(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/echo":
		w.Header().Set("Connection", "X-Private, keep-alive")
		w.Header().Set("X-Private", "1")
		_ = http.NewResponseController(w).EnableFullDuplex() // else net/http drops what is unread when the reply begins
		_, _ = io.Copy(w, r.Body)
	case "/show":
		w.Header().Add("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.WriteHeader(203)
		fmt.Fprintf(w, "%s %s length=%d uid=%d te=%v call=%s accept=%q expect=%q", r.Method, r.URL.RequestURI(), r.ContentLength,
			os.Getuid(), r.TransferEncoding, r.Header.Get("X-Call-Id"), r.Header.Values("Accept"), r.Header.Get("Expect"))
	case "/env":
		fmt.Fprintf(w, "%s", os.Getenv(r.URL.RawQuery))
	case "/file":
		b, err := os.ReadFile(r.URL.RawQuery)
		fmt.Fprintf(w, "%s %v", b, err)
	case "/inet":
		_, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		_, _, ptrace := syscall.Syscall(syscall.SYS_PTRACE, 0, 0, 0)
		fmt.Fprintf(w, "%v %v", err, ptrace)
	case "/upper": // answers while it reads
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		buf := make([]byte, 32<<10)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write([]byte(strings.ToUpper(string(buf[:n]))))
			_ = rc.Flush()
			if err == io.EOF {
				return
			}
			if err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	case "/slow":
		d, _ := time.ParseDuration(r.URL.RawQuery)
		time.Sleep(d)
		fmt.Fprint(w, "slept")
	case "/half":
		fmt.Fprint(w, strings.Repeat("x", 100))
		_ = http.NewResponseController(w).Flush()
		time.Sleep(time.Hour)
	case "/early": // answers without reading
		w.WriteHeader(http.StatusTeapot)
	case "/die":
		os.Exit(7)
	case "/killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Second)
	case "/print":
		fmt.Println(r.URL.RawQuery)
		fmt.Fprintln(os.Stderr, "error "+r.URL.RawQuery)
	case "/abort":
		fmt.Fprint(w, "part")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/size":
		n, _ := strconv.Atoi(r.URL.RawQuery)
		w.Header().Set("Content-Length", r.URL.RawQuery)
		_, _ = io.CopyN(w, zeros{}, int64(n))
	case "/claim": // what only the platform may say
		for _, h := range []string{api.HeaderRefused, api.HeaderUnopened, api.HeaderLoad, api.HeaderStart, api.HeaderServedBy, api.HeaderFunctionErr, "X-Own"} {
			w.Header().Set(h, "busy")
		}
	case "/manyheaders":
		for i := range 400 {
			w.Header().Set("X-"+strconv.Itoa(i), "v")
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
