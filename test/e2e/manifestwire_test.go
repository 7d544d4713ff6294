package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// numberForms are the ways a need could have been written down without being
// sealed. Those of four bytes are found by chance now and then.
func numberForms(secret string, v uint64) []needle {
	decimal := strconv.FormatUint(v, 10)
	hex := strconv.FormatUint(v, 16)
	out := []needle{
		{secret, "decimal", []byte(decimal)}, {secret, "hex", []byte(hex)}, {secret, "HEX", []byte(strings.ToUpper(hex))},
		{secret, "big endian", binary.BigEndian.AppendUint64(nil, v)}, {secret, "little endian", binary.LittleEndian.AppendUint64(nil, v)},
	}
	cbor := append([]byte{0x1b}, binary.BigEndian.AppendUint64(nil, v)...)
	if v < 1<<32 {
		cbor = append([]byte{0x1a}, binary.BigEndian.AppendUint32(nil, uint32(v))...)
		out = append(out, needle{secret, short + "big endian", binary.BigEndian.AppendUint32(nil, uint32(v))},
			needle{secret, short + "little endian", binary.LittleEndian.AppendUint32(nil, uint32(v))})
	} else {
		out = append(out, base64Forms(secret, cbor)...)
	}
	form := "varint"
	varint := binary.AppendUvarint(nil, v)
	if len(varint) == 4 {
		form = short + form
	}
	return append(out, needle{secret, "CBOR", cbor}, needle{secret, form, varint})
}

// short marks forms of four bytes.
const short = "short "

// TestManifestsCrossMachinesUnseen has tasks with distinctive needs cross a network
// between a caller, a coordinator and two nodes, each on a machine of its own; some
// are placed, some are not, and some end badly. Neither a number nor a label of a
// manifest is in any packet, nor on the coordinator's disk; and nothing of a payload
// is in an anomaly log, nor in any file of any machine.
func TestManifestsCrossMachinesUnseen(t *testing.T) {
	needTools(t, "ip", "iptables", "nft", "nsenter", "tc", "tcpdump", "curl")
	const tasks = 10
	m := newMachines(t, 2, func(m *machines) {
		m.lent = func(*machine) []string {
			return []string{"-capacity-cpu", "2", "-capacity-memory", "1Gi", "-ingress", "20G", "-egress", "20G", "-port-range", "31000-31007"}
		}
	})
	// The caller is on a machine of its own too, as far as packets tell.
	far := *m.cluster
	tr := client.NewTransport()
	tr.DialContext = m.net.dialer(2)
	t.Cleanup(tr.CloseIdleConnections)
	far.transport = tr
	var err error
	if far.client, err = client.New(client.Config{Gateway: m.gateway, Identity: m.id, Pins: m.pins, Transport: tr}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(far.client.Close)
	can := newCanaries(t)
	memory, storage := uint64(73400321+rand.IntN(40<<20)), uint64(17<<20+rand.IntN(7<<20))
	ingress, egress := uint64(1<<32+rand.Int64N(4e9)), uint64(1<<32+rand.Int64N(4e9))
	impossible, planted := uint64(1<<40+rand.Int64N(1<<40)), uint64(1<<40+rand.Int64N(1<<40))
	labels := append(forms("label's key", can.header), forms("label's value", can.secret)...)
	payload := append(forms("payload", can.body), forms("path", can.path)...)
	var numbers []needle
	for what, v := range map[string]uint64{"memory": memory, "storage": storage, "ingress": ingress, "egress": egress, "impossible memory": impossible} {
		numbers = append(numbers, numberForms(what, v)...)
	}
	plants := append(numberForms("planted number", planted), forms("planted", can.planted)...)

	fn := far.deploy(t, "wired", func(d *client.Deployment) {
		d.Bounds = &manifest.Bounds{Max: manifest.Max{MemoryBytes: 1 << 50, StorageBytes: 64 << 20, IngressBPS: 1e10, EgressBPS: 1e10, Ports: 2, Priority: 9, Attempts: 3},
			Overridable: []manifest.Field{manifest.FieldMemory, manifest.FieldStorage, manifest.FieldIngress, manifest.FieldEgress, manifest.FieldPorts, manifest.FieldConstraints,
				manifest.FieldDeadline, manifest.FieldPriority, manifest.FieldRetry}}
	})
	capture := startCapture(t, m.net.path(0), "br0", "")
	needs := func() *client.Needs {
		return &client.Needs{Needs: manifest.Needs{MemoryBytes: memory, StorageBytes: storage, IngressBPS: ingress, EgressBPS: egress,
			Ports: []manifest.Port{{Protocol: manifest.TCP, Count: 1}}, Constraints: []manifest.Requirement{{Key: can.header, Op: manifest.Differs, Value: can.secret}}}}
	}
	for range tasks {
		resp, body, err := far.invoke(t, fn, client.Request{Path: "/" + can.path, Body: strings.NewReader(can.body), Needs: needs()})
		if err != nil || resp.Status != http.StatusOK || string(body) != can.body {
			t.Fatalf("%+v, %q, %v", resp, body, err)
		}
	}
	// The same asked for by headers, of a proxy on the caller's machine.
	url := proxied(t, far.client, fn)
	for range 2 {
		body, err := curl(t.Context(), "--data", can.body, "-H", fmt.Sprintf("%sMemory: %d", api.HeaderNeedPrefix, memory), "-H", fmt.Sprintf("%sStorage: %d", api.HeaderNeedPrefix, storage),
			"-H", fmt.Sprintf("%sIngress: %d", api.HeaderNeedPrefix, ingress), "-H", fmt.Sprintf("%sEgress: %d", api.HeaderNeedPrefix, egress), "-H", api.HeaderNeedPrefix+"Port: tcp",
			"-H", api.HeaderNeedPrefix+"Require: "+can.header+"!="+can.secret, "-H", api.HeaderNeedPrefix+"Deadline: 20s", url+can.path)
		if err != nil || body != can.body {
			t.Errorf("through the proxy: %q, %v", body, err)
		}
	}
	if body, err := curl(t.Context(), "--data", can.body, "-H", fmt.Sprintf("%sMemory: %d", api.HeaderNeedPrefix, impossible), "-H", api.HeaderNeedPrefix+"Deadline: 1s", url+can.path); err == nil {
		t.Errorf("through the proxy: no node has so much: %q", body)
	}
	if body, err := curl(t.Context(), "--data", can.body, "-H", fmt.Sprintf("%sPids: %d", api.HeaderNeedPrefix, 64), url+can.path); err == nil || !strings.Contains(body, string(api.CodeExceedsBounds)) {
		t.Errorf("through the proxy: what the owner does not allow: %q, %v", body, err)
	}
	large := strings.Repeat(can.body, 16<<10)
	if _, body, err := far.invoke(t, fn, client.Request{Path: "/", Body: strings.NewReader(large), Needs: needs()}); err != nil || string(body) != large {
		t.Errorf("a large body: %d bytes, %v", len(body), err)
	}
	for range 2 {
		n := needs()
		n.MemoryBytes, n.Deadline = impossible, time.Now().Add(time.Second)
		if _, _, err := far.invoke(t, fn, client.Request{Path: "/" + can.path, Body: strings.NewReader(can.body), Needs: n}); err == nil {
			t.Error("no node has so much")
		}
	}
	for _, path := range []string{"/crash", "/oom"} { // how they end is what other tests are about
		_, _, err := far.invoke(t, fn, client.Request{Path: path, Query: "q=" + can.path, Body: strings.NewReader(can.body), Needs: needs()})
		t.Logf("%s: %v", path, err)
	}
	waitFor(t, 20*time.Second, "both ends to be anomalies", func() error {
		have := map[string]bool{}
		for _, l := range far.anomalies(t, nil) {
			have[l.Kind] = true
		}
		if !have["oom"] || !have["abnormal-stop"] {
			return fmt.Errorf("%v", have)
		}
		return nil
	})
	// Nor does the gateway tell them to whoever asks.
	if st, err := far.client.Describe(t.Context(), fn); err != nil || len(st.Sandboxes) == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if list, err := far.client.Tasks(t.Context(), nil); err != nil || len(list.Tasks) == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	if list, err := far.client.NodeDetails(t.Context(), true); err != nil || len(list.Nodes) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := far.client.Nodes(t.Context()); err != nil {
		t.Error(err)
	}

	conn, err := m.net.dialer(1)(t.Context(), "tcp", strings.TrimPrefix(m.gateway, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range plants {
		if _, err := conn.Write(n.bytes); err != nil {
			break // the gateway may have had enough
		}
	}
	_ = conn.Close()
	capture.stop(t, can.planted)
	find, err := newFinderOf(append(append(append(plants, labels...), payload...), numbers...), 4)
	if err != nil {
		t.Fatal(err)
	}
	seen, chance := sightings{}, map[string]int{}
	note := func(n needle, where string) {
		if strings.HasPrefix(n.form, short) {
			if chance[n.secret+n.form]++; chance[n.secret+n.form] < tasks { // packets and connections tell twice
				return
			}
		}
		seen.note(n, where)
	}
	packets, flows, size, err := capture.search(find, note)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("traffic: %d packets, %d directions of connections, %d bytes; by chance %v", packets, flows, size, chance)
	for _, secret := range []string{"planted", "planted number"} {
		if len(seen[secret]) < 2 {
			t.Errorf("the search does not find what was planted: %v", seen)
		}
		delete(seen, secret)
	}
	if size < int64(len(large)) {
		t.Errorf("only %d bytes were captured", size)
	}
	if len(seen) > 0 {
		t.Errorf("in clear on the network: %v", seen)
	}

	// Nodes know what they enforce; nobody's disk has a payload, and the
	// coordinator's has no need either.
	everywhere, err := newFinderOf(append(labels, payload...), 8)
	if err != nil {
		t.Fatal(err)
	}
	var long []needle
	for _, n := range numbers {
		if len(n.bytes) >= 7 {
			long = append(long, n)
		}
	}
	everything, err := newFinderOf(append(append(long, labels...), payload...), 7)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(m.state, "*", "anomalies"))
	if err != nil || len(logs) != 3 {
		t.Fatalf("anomaly logs: %v, %v", logs, err)
	}
	for dir, f := range map[string]*finder{m.state: everywhere, m.run: everywhere, filepath.Join(m.state, "coordinator"): everything,
		filepath.Join(m.state, "keybroker"): everything, filepath.Join(m.state, "manifest-opener"): everything, filepath.Join(m.state, "logs"): everything,
		logs[0]: everything, logs[1]: everything, logs[2]: everything} {
		seen := sightings{}
		files, size, err := f.tree(dir, time.Time{}, nil, seen.note)
		if err != nil || dir != m.run && size == 0 {
			t.Errorf("search %s: %d bytes, %v", dir, size, err)
		}
		if len(seen) > 0 {
			t.Errorf("%s holds %v", dir, seen)
		}
		t.Logf("%s: %d files, %d bytes", dir, files, size)
	}
	if err := far.client.Remove(t.Context(), fn); err != nil {
		t.Error(err)
	}
}
