package main

import (
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// silences are the requests that are being waited for in silent.
var silences atomic.Int64

// silent sends one event, if it is asked for a first one, then nothing for ms
// milliseconds, and then the last one. With ?working it tells how many of these
// requests are being served.
func silent(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Has("working") {
		fmt.Fprint(w, silences.Load())
		return
	}
	silences.Add(1)
	defer silences.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	if q.Has("first") {
		fmt.Fprint(w, "data: first\n\n")
		w.(http.Flusher).Flush()
	}
	ms, _ := strconv.Atoi(q.Get("ms"))
	select {
	case <-time.After(time.Duration(ms) * time.Millisecond):
	case <-r.Context().Done():
	}
	fmt.Fprint(w, "data: last\n\n")
}
