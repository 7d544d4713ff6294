package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// capture is a tcpdump of one interface.
type capture struct {
	cmd  *exec.Cmd
	file string
	log  string
	done chan error
}

// startCapture records every byte of every packet that passes iface until stop.
// The filter is tcpdump's, empty for all; netns is the path of the network
// namespace, empty for the present one.
func startCapture(t testing.TB, netns, iface, filter string) *capture {
	t.Helper()
	dir := t.TempDir()
	c := &capture{file: filepath.Join(dir, iface+".pcap"), log: filepath.Join(dir, "tcpdump.log"), done: make(chan error, 1)}
	// Large kernel buffer: a packet that was dropped was not searched.
	args := []string{"tcpdump", "-i", iface, "-s", "0", "-U", "-n", "-B", "131072", "-Z", "root", "-w", c.file, filter}
	if netns != "" {
		args = append([]string{"nsenter", "--net=" + netns}, args...)
	}
	c.cmd = exec.Command(args[0], args[1:]...)
	log, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stderr = log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.done <- c.cmd.Wait() }() // ends with tcpdump
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	waitFor(t, 10*time.Second, "tcpdump to listen", func() error {
		b, err := os.ReadFile(c.log)
		if err == nil && !bytes.Contains(b, []byte("listening on")) {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
	return c
}

// stop ends the capture once it holds last, and fails if packets were missed.
func (c *capture) stop(t testing.TB, last string) {
	t.Helper()
	waitFor(t, 20*time.Second, "the last packet to be written", func() error {
		b, err := os.ReadFile(c.file)
		if err == nil && !bytes.Contains(b, []byte(last)) {
			err = errors.New("not there yet")
		}
		return err
	})
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-c.done; err != nil {
		t.Fatalf("tcpdump: %v", err)
	}
	b, err := os.ReadFile(c.log)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(\d+) packets? dropped by kernel`).FindSubmatch(b)
	if m == nil || string(m[1]) != "0" {
		t.Fatalf("the capture is not whole: %s", b)
	}
}

// packet is one frame of a capture.
type packet struct {
	number  int // as tcpdump counts, from 1
	flow    string
	tcp     bool
	seq     uint32
	payload []byte
}

// packets reads the capture file: Ethernet frames, as loopback has them.
func (c *capture) packets() ([]packet, error) {
	f, err := os.Open(c.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<20)
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	if magic, link := binary.LittleEndian.Uint32(head[:]), binary.LittleEndian.Uint32(head[20:]); magic != 0xa1b2c3d4 || link != 1 {
		return nil, fmt.Errorf("pcap: magic %x, link type %d", magic, link)
	}
	var out []packet
	for {
		var h [16]byte
		if _, err := io.ReadFull(r, h[:]); err == io.EOF {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		b := make([]byte, binary.LittleEndian.Uint32(h[8:]))
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if kept, was := len(b), binary.LittleEndian.Uint32(h[12:]); uint32(kept) != was {
			return nil, fmt.Errorf("pcap: packet %d has %d bytes, %d were kept", len(out)+1, was, kept)
		}
		p := parseFrame(b)
		p.number = len(out) + 1
		out = append(out, p)
	}
}

// parseFrame finds the payload. What it does not know is all payload.
func parseFrame(b []byte) packet {
	whole := packet{flow: "other", payload: b}
	if len(b) < 14 {
		return whole
	}
	var proto byte
	var src, dst netip.Addr
	ip := b[14:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		if len(ip) < 20 || len(ip) < int(ip[0]&15)*4 {
			return whole
		}
		proto, src, dst = ip[9], netip.AddrFrom4([4]byte(ip[12:])), netip.AddrFrom4([4]byte(ip[16:]))
		ip = ip[int(ip[0]&15)*4:]
	case 0x86dd:
		if len(ip) < 40 {
			return whole
		}
		proto, src, dst = ip[6], netip.AddrFrom16([16]byte(ip[8:])), netip.AddrFrom16([16]byte(ip[24:]))
		ip = ip[40:]
	default:
		return whole
	}
	header := 8
	if proto == 6 && len(ip) >= 20 {
		header = int(ip[12]>>4) * 4
	}
	if proto != 6 && proto != 17 || len(ip) < header {
		return whole
	}
	p := packet{tcp: proto == 6, payload: ip[header:], flow: fmt.Sprintf("%d %v > %v", proto,
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(ip)), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ip[2:])))}
	if p.tcp {
		p.seq = binary.BigEndian.Uint32(ip[4:])
	}
	return p
}

// search looks at every packet, and at the bytes of every TCP connection in
// their order, so that no boundary between packets hides anything.
func (c *capture) search(f *finder, found func(n needle, where string)) (packets, flows int, size int64, err error) {
	all, err := c.packets()
	if err != nil {
		return 0, 0, 0, err
	}
	byFlow := map[string][]packet{}
	for _, p := range all {
		size += int64(len(p.payload))
		f.search(p.payload, func(n needle, off int) { found(n, fmt.Sprintf("packet %d, %s, byte %d", p.number, p.flow, off)) })
		if p.tcp && len(p.payload) > 0 {
			byFlow[p.flow] = append(byFlow[p.flow], p)
		}
	}
	for flow, ps := range byFlow {
		first := ps[0].seq
		slices.SortStableFunc(ps, func(a, b packet) int { return cmp.Compare(int32(a.seq-first), int32(b.seq-first)) })
		var joined []byte
		next := ps[0].seq
		for _, p := range ps {
			if skip := int32(next - p.seq); skip > 0 { // sent again
				if int(skip) >= len(p.payload) {
					continue
				}
				p.payload = p.payload[skip:]
			}
			joined = append(joined, p.payload...)
			next = p.seq + uint32(len(p.payload))
		}
		f.search(joined, func(n needle, off int) { found(n, fmt.Sprintf("connection %s, byte %d", flow, off)) })
	}
	return len(all), len(byFlow), size, nil
}

// portsOf are the TCP and UDP ports that processes listen on.
func portsOf(pids []int) ([]uint64, error) {
	const listening, unconnected = "0A", "07" // as proc(5) writes TCP and UDP states
	ports := map[string]uint64{}              // inode -> port
	for table, state := range map[string]string{"tcp": listening, "tcp6": listening, "udp": unconnected, "udp6": unconnected} {
		b, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			return nil, err
		}
		for line := range strings.SplitSeq(string(b), "\n") {
			f := strings.Fields(line)
			if len(f) < 10 || f[3] != state {
				continue
			}
			port, err := strconv.ParseUint(f[1][strings.LastIndexByte(f[1], ':')+1:], 16, 16)
			if err != nil {
				return nil, fmt.Errorf("/proc/net/%s: %q: %w", table, line, err)
			}
			ports[f[9]] = port
		}
	}
	var out []uint64
	for _, pid := range pids {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil {
			return nil, err
		}
		for _, link := range links {
			target, err := os.Readlink(link)
			if err != nil {
				continue // it was closed
			}
			inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
			if port := ports[inode]; port != 0 && !slices.Contains(out, port) {
				out = append(out, port)
			}
		}
	}
	return out, nil
}

// waitFor polls until f succeeds.
func waitFor(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
