package client_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// keeper is a gateway that keeps what is put, and gives results that were set.
type keeper struct {
	*cluster
	messages [][]byte
	query    string
	results  map[string][]byte
}

func newKeeper(c *cluster) *keeper {
	k := &keeper{cluster: c, results: map[string][]byte{}}
	c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if id, ok := strings.CutPrefix(r.URL.Path, api.GatewayPathResults); ok {
			b := k.results[id]
			if b == nil {
				clienttest.Fail(w, &api.Error{Code: api.CodeNotFound, Message: "none"})
				return true
			}
			w.Header().Set("Content-Type", api.ContentTypeSealed)
			_, _ = w.Write(b)
			return true
		}
		if !strings.HasPrefix(r.URL.Path, api.GatewayPathSchedules+"/") {
			return false
		}
		k.messages, k.query = nil, r.URL.RawQuery
		b, err := io.ReadAll(r.Body)
		for err == nil && len(b) >= 4 {
			n := int(binary.BigEndian.Uint32(b))
			k.messages, b = append(k.messages, b[4:4+n]), b[4+n:]
		}
		_ = json.NewEncoder(w).Encode(api.Schedule{Left: len(k.messages)})
		return true
	}
	return k
}

func TestTicksAreSealedForTheirTimeAndNoOther(t *testing.T) {
	c, owner, _ := deployed(t)
	k := newKeeper(c)
	a, err := owner.NewAhead(fn, "*/10 * * * *", client.Request{Path: "/confidential-path"}, []byte("confidential-body"), client.Later{Callback: "https://example.org/x", Once: true})
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now().Add(time.Hour).Truncate(time.Hour)
	ticks, err := owner.SealTicks(t.Context(), a, from, from.Add(3*time.Hour))
	if err != nil || ticks.Number != 18 || !ticks.First.Equal(from.Add(10*time.Minute)) || !ticks.Last.Equal(from.Add(3*time.Hour)) || ticks.Capped {
		t.Fatalf("%+v %v", ticks, err)
	}
	if _, err := owner.PutTicks(t.Context(), a, ticks, api.TicksNew); err != nil {
		t.Fatal(err)
	}
	grants := map[sealed.Digest]bool{}
	for i, b := range k.messages {
		p, err := sealed.Peek(b)
		if err != nil {
			t.Fatal(err)
		}
		tick := from.Add(time.Duration(i+1) * 10 * time.Minute)
		grants[p.Message.Grant] = true
		if p.Message.Issued != uint64(tick.UnixMilli()) || p.Grant.NotAfter-p.Grant.NotBefore != 3600 || p.Grant.Context != c.Revision {
			t.Errorf("%d: %+v", i, p)
		}
		for now, want := range map[time.Time]bool{tick: true, tick.Add(-31 * time.Second): false, tick.Add(6 * time.Minute): false} {
			if err := sealed.CheckWindow(&p.Grant, &p.Message, 0, uint64(now.UnixMilli())); (err == nil) != want {
				t.Errorf("at %s: %v", now, err)
			}
		}
		if bytes.Contains(b, []byte("confidential")) {
			t.Error("it is there to be read")
		}
	}
	if len(k.messages) != 18 || len(grants) != 3 {
		t.Errorf("%d messages, %d grants", len(k.messages), len(grants))
	}
}

// A tick's result opens with what was kept of whichever message ran.
func TestResultsOfTicksOpenFromTheFile(t *testing.T) {
	c, owner, _ := deployed(t)
	k := newKeeper(c)
	a, err := owner.NewAhead(fn, "@every 1s", client.Request{}, []byte("confidential-body"), client.Later{})
	if err != nil {
		t.Fatal(err)
	}
	from := time.Now().Add(-3 * time.Second)
	var first, second *client.Ticks
	for _, ticks := range []**client.Ticks{&first, &second} { // the second as a replacement
		if *ticks, err = owner.SealTicks(t.Context(), a, from, from.Add(2*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := owner.MarshalAhead(a)
	if err != nil || bytes.Contains(b, []byte("confidential")) {
		t.Fatal(err, "or the data is there to be read")
	}
	if _, err := c.client(identity(t), firstUse).UnmarshalAhead(b); api.CodeOf(err) != api.CodeForbidden {
		t.Error("another identity:", err)
	}
	if _, err := owner.UnmarshalAhead(bytes.Replace(b, []byte("@every 1s"), []byte("@every 9s"), 1)); api.CodeOf(err) != api.CodeForbidden {
		t.Error("a file that was changed:", err)
	}
	again, err := owner.UnmarshalAhead(b)
	if err != nil {
		t.Fatal(err)
	}
	info, err := client.ReadAheadInfo(b)
	if err != nil || info.Cron != "@every 1s" || info.ID != a.ID || info.Until != a.Until.UnixMilli() {
		t.Errorf("%+v %v", info, err)
	}
	for _, ticks := range []*client.Ticks{first, second} {
		if _, err := owner.PutTicks(t.Context(), again, ticks, api.TicksReplace); err != nil || !strings.Contains(k.query, "mode=replace") {
			t.Fatal(err, k.query)
		}
		reply := invoked(t, c, k.messages[0])
		k.results[again.CallID(ticks.First)] = reply
		res, err := owner.TickResult(t.Context(), again, ticks.First)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(res.Body); err != nil || string(b) != "confidential-body" {
			t.Errorf("%q %v", b, err)
		}
		res.Body.Close()
	}
	if got := again.Sealed(from, time.Now()); len(got) != first.Number {
		t.Errorf("%v", got)
	}
	if _, err := owner.TickResult(t.Context(), again, first.Last); api.CodeOf(err) != api.CodeNotFound {
		t.Error(err)
	}
	k.results[again.CallID(first.Last)] = k.results[again.CallID(first.First)]
	if _, err := owner.TickResult(t.Context(), again, first.Last); api.CodeOf(err) != api.CodeForbidden {
		t.Error("another tick's result:", err)
	}
}

// invoked has the function answer a sealed message.
func invoked(t *testing.T, c *cluster, message []byte) []byte {
	t.Helper()
	res, err := http.Post(c.URL+api.GatewayPathInvoke+string(fn), api.ContentTypeSealed, bytes.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%d %s %v", res.StatusCode, b, err)
	}
	http.DefaultClient.CloseIdleConnections()
	return b
}

func TestWhatCannotBeSealedAheadIsRefused(t *testing.T) {
	c, owner, _ := deployed(t)
	newKeeper(c)
	for _, cron := range []string{"", "often", "* * *"} {
		if _, err := owner.NewAhead(fn, cron, client.Request{}, nil, client.Later{}); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%q: %v", cron, err)
		}
	}
	if _, err := owner.NewAhead(fn, "@hourly", client.Request{Stream: true}, nil, client.Later{}); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
	now := time.Now()
	for want, seal := range map[api.Code]func(*client.Ahead) (*client.Ticks, error){
		api.CodeInvalid: func(a *client.Ahead) (*client.Ticks, error) { return owner.SealTicks(t.Context(), a, now, now) },
		api.CodeTooLarge: func(*client.Ahead) (*client.Ticks, error) {
			a, err := owner.NewAhead(fn, "@hourly", client.Request{}, make([]byte, api.MaxTickBytes), client.Later{})
			if err != nil {
				t.Fatal(err)
			}
			return owner.SealTicks(t.Context(), a, now, now.Add(2*time.Hour))
		},
	} {
		a, err := owner.NewAhead(fn, "@hourly", client.Request{}, nil, client.Later{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seal(a); api.CodeOf(err) != want {
			t.Errorf("%s: %v", want, err)
		}
	}
	a, err := owner.NewAhead(fn, "@hourly", client.Request{}, nil, client.Later{})
	if err != nil {
		t.Fatal(err)
	}
	// No further than the function's key lives, and no more than are kept.
	ticks, err := owner.SealTicks(t.Context(), a, now, now.Add(200*24*time.Hour))
	if err != nil || !ticks.Capped || ticks.Last.After(now.Add(90*24*time.Hour)) || ticks.Last.Before(now.Add(89*24*time.Hour)) {
		t.Errorf("%+v %v", ticks.Last, err)
	}
}
