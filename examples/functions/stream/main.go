// Command stream transforms a body of any size while it flows: POST / upper-cases
// it, POST /sha256 answers with its digest. It holds one buffer, whatever comes.
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
)

func main() {
	fd, err := strconv.ParseUint(os.Getenv("FAASD_SEC_LISTEN_FD"), 10, 16)
	if err != nil {
		log.Fatal("FAASD_SEC_LISTEN_FD: this function serves on a handed socket: set `upstream: unix`")
	}
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	if err != nil {
		log.Fatal(err)
	}
	f.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", upper)
	mux.HandleFunc("POST /sha256", digest)
	log.Fatal(http.Serve(ln, mux))
}

// upper answers while it reads.
func upper(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		for i, c := range buf[:n] {
			if 'a' <= c && c <= 'z' {
				buf[i] = c - 'a' + 'A'
			}
		}
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			if err := rc.Flush(); err != nil {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			// Ending normally would make what was sent look whole.
			panic(http.ErrAbortHandler)
		}
	}
}

func digest(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintf(w, "%x  %d bytes\n", h.Sum(nil), n)
}
