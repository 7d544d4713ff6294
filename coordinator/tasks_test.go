package coordinator

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/anomaly/anomalytest"
	"github.com/faasd-sec/faasd-sec/api"
)

// noted keeps events.
type noted struct {
	mu   sync.Mutex
	list []anomaly.Event
}

func (n *noted) Append(e anomaly.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, e)
}

func (n *noted) events() []anomaly.Event {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func get[T any](t *testing.T, w *world, path string) (out T) {
	t.Helper()
	res, err := w.http.Get(w.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %d %s %v", path, res.StatusCode, b, err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return out
}

func TestANodeThatIsGoneUnannouncedIsAMissedHeartbeat(t *testing.T) {
	log := &noted{}
	w := newWorld(t, 3, func(w *world) {
		w.watching.Anomalies = log
		w.mesh.view.Nodes[0].Load.Draining = true
		w.mesh.view.Nodes[1].Load.Running, w.mesh.view.Nodes[1].Load.InFlight = 4, 7
	})
	leave := func(id string) {
		w.mesh.mu.Lock()
		defer w.mesh.mu.Unlock()
		w.mesh.view = &api.ClusterView{Version: w.mesh.view.Version + 1, Nodes: slices.DeleteFunc(slices.Clone(w.mesh.view.Nodes),
			func(v api.NodeView) bool { return v.Meta.ID == id })}
		close(w.mesh.changed)
		w.mesh.changed = make(chan struct{})
	}
	eventually(t, "the members to be known", func() bool { return w.c.members.Load() == 3 })
	leave("node-1")
	leave("node-2")
	eventually(t, "an event", func() bool { return len(log.events()) > 0 })
	e := log.events()
	if len(e) != 1 || e[0].Kind != anomaly.HeartbeatMissed || e[0].Node != "node-2" || e[0].Code != "dead" ||
		e[0].Numbers["sandboxes"] != 4 || e[0].Numbers["inflight"] != 7 || e[0].Validate() != nil {
		t.Errorf("%+v", e)
	}
}

func TestTasksComeFromAllNodesAndThoseMissingAreNamed(t *testing.T) {
	w := newWorld(t, 3)
	for _, id := range []string{"node-1", "node-3"} {
		n := w.nodes[id]
		n.on(&n.other, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != api.NodePathStatus || r.URL.Query().Get(api.QueryFunction) != "f.ns" && r.URL.RawQuery != "" {
				rw.WriteHeader(400)
				return
			}
			json.NewEncoder(rw).Encode(api.NodeStatus{Node: id, Running: 1, Tasks: []api.TaskStatus{{ID: "s-" + id, Node: id, Function: "f.ns"}}})
		})
	}
	list := get[api.TaskList](t, w, api.GatewayPathTasks+"?function=f.ns")
	if len(list.Tasks) != 2 || list.Tasks[0].ID != "s-node-1" || list.Tasks[1].ID != "s-node-3" ||
		len(list.Missing) != 1 || list.Missing[0].Node != "node-2" || list.Missing[0].Error == "" {
		t.Errorf("%+v", list)
	}
	if list := get[api.TaskList](t, w, api.GatewayPathTasks+"?node=node-3"); len(list.Tasks) != 1 || len(list.Missing) != 0 {
		t.Errorf("of one node: %+v", list)
	}
	nodes := get[api.NodeList](t, w, api.GatewayPathNodes+"?detail=1")
	if len(nodes.Nodes) != 3 || nodes.Nodes[0].Status == nil || nodes.Nodes[1].Status != nil || nodes.Nodes[1].Error == "" || nodes.Nodes[1].View.Meta.ID != "node-2" {
		t.Errorf("%+v", nodes)
	}
	if plain := get[[]api.NodeView](t, w, api.GatewayPathNodes); len(plain) != 3 {
		t.Errorf("%+v", plain)
	}
	// Beyond the bound nobody asks all nodes.
	for range maxLooks {
		w.c.looks <- struct{}{}
	}
	res, err := w.http.Get(w.url + api.GatewayPathTasks)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable && res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("status %d", res.StatusCode)
	}
}

// What is told to everybody is no closer to a manifest's numbers than a hundredth,
// and has no key that could be guessed from them.
func TestListedNodesTellNothingOfManifests(t *testing.T) {
	w := newWorld(t, 1)
	key := api.RevisionKey(w.state.Get("f.ns").Revision)
	w.mesh.set("node-1", func(v *api.NodeView) {
		v.Meta.Capacity = api.Resources{CPU: 4000, Memory: 1 << 30, Egress: 100e6}
		v.Load.Free = api.Resources{CPU: 4000, Memory: 1<<30 - 73400321, Egress: 100e6 - 12345678}
		v.Load.Warm = map[string]int{key: 2, "0123456789abcdef": 1}
	})
	for _, query := range []string{"", "?detail=1"} {
		var view api.NodeView
		if query == "" {
			view = get[[]api.NodeView](t, w, api.GatewayPathNodes)[0]
		} else {
			view = get[api.NodeList](t, w, api.GatewayPathNodes+query).Nodes[0].View
		}
		if l := view.Load; l.Free.CPU != 4000 || l.Free.Memory != (1<<30-73400321)/(1<<30/100)*(1<<30/100) || l.Free.Egress != 87e6 {
			t.Errorf("%q: free %+v", query, l.Free)
		}
		if l := view.Load; len(l.Warm) != 1 || l.Warm[key] != 2 {
			t.Errorf("%q: warm %v", query, l.Warm)
		}
	}
}

func TestAnomaliesOfAllLogsAreOneStream(t *testing.T) {
	log, dir := anomalytest.Open(t, "coordinator-1")
	w := newWorld(t, 2, func(w *world) {
		w.watching = Watching{ID: "coordinator-1", Anomalies: log, Dir: dir}
		n := w.nodes["node-1"]
		n.on(&n.other, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get(api.QueryKind) != "heartbeat-missed" {
				rw.WriteHeader(400)
				return
			}
			b, _ := anomaly.Line("node-1", &anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: "node-1", Code: "agent"})
			rw.Write(b)
			if r.URL.Query().Get(api.QueryFollow) == "1" {
				rw.(http.Flusher).Flush()
				<-r.Context().Done()
			}
		})
	})
	log.Append(anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: "node-9", Code: "dead"})
	log.Append(anomaly.Event{Kind: anomaly.Drained, Node: "node-9", Code: "shutdown"})
	var text string
	eventually(t, "all lines", func() bool {
		res, err := w.http.Get(w.url + api.GatewayPathAnomalies + "?kind=heartbeat-missed")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
		return strings.Count(text, "\n") == 3
	})
	for _, want := range []string{`"log":"coordinator-1"`, `"node":"node-9"`, `"log":"node-1"`, `{"error":"not_found","log":"node-2"}`} {
		if !strings.Contains(text, want) && !strings.Contains(text, strings.Replace(want, "not_found", "unavailable", 1)) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
	if strings.Contains(text, "drained") {
		t.Errorf("not what was asked for: %s", text)
	}
	// It is followed until the reader leaves, and gives its place back.
	res, err := w.http.Get(w.url + api.GatewayPathAnomalies + "?kind=heartbeat-missed&follow=1")
	if err != nil {
		t.Fatal(err)
	}
	log.Append(anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: "node-8", Code: "dead"})
	r := bufio.NewReader(res.Body)
	for line := ""; !strings.Contains(line, "node-8"); {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	res.Body.Close()
	eventually(t, "the place to be free", func() bool { return len(w.c.reads) == 0 })
	for _, bad := range []string{"kind=none", "since=x", "function=../x", "node=A"} {
		res, err := w.http.Get(w.url + api.GatewayPathAnomalies + "?" + bad)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 400 {
			t.Errorf("%s: status %d", bad, res.StatusCode)
		}
	}
}
