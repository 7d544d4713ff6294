// Command hello is the smallest function: an HTTP server that greets. It serves
// on the socket that the agent hands it, or on port 8080 where there is none.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
)

func main() {
	ln, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	log.Print("serving on ", ln.Addr().Network())
	log.Fatal(http.Serve(ln, http.HandlerFunc(hello)))
}

func hello(w http.ResponseWriter, r *http.Request) {
	name, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
	if err != nil {
		http.Error(w, "a name has at most 1024 bytes", http.StatusRequestEntityTooLarge)
		return
	}
	if len(name) == 0 {
		name = []byte("world")
	}
	greeting := os.Getenv("GREETING") // from the sealed environment
	if greeting == "" {
		greeting = "Hello"
	}
	fmt.Fprintf(w, "%s, %s!\n", greeting, name)
}

// listen takes the handed socket, if there is one.
func listen() (net.Listener, error) {
	s := os.Getenv("FAASD_SEC_LISTEN_FD")
	if s == "" {
		return net.Listen("tcp", ":8080")
	}
	fd, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("FAASD_SEC_LISTEN_FD: %w", err)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	return net.FileListener(f)
}
