package network

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crashJob is what a helper process does until a program it runs kills it.
type crashJob struct {
	Config Config
	NetNS  string
	Want   Want
	Detach bool // attach, then be killed detaching
}

func crashing() int {
	var j crashJob
	err := json.Unmarshal([]byte(os.Getenv(envCrash)), &j)
	var m *Manager
	ctx := context.Background()
	if err == nil {
		m, err = Open(ctx, j.Config)
	}
	if err == nil && !j.Detach {
		_, err = m.Attach(ctx, "crash", j.NetNS, j.Want)
	}
	if err == nil && j.Detach {
		err = m.Detach(ctx, "crash")
	}
	fmt.Fprintln(os.Stderr, "not killed:", err)
	return 3
}

// A program in front of each plugin and of nft and iptables, that kills who
// runs the manager: before it does its work, after, or before and then does it
// all the same, as a child whose parent was killed does.
const killer = `#!/bin/sh
at="$(basename "$0"):$CNI_COMMAND"
read me rest < "$CRASH_DIR/pid"
hit() {
	[ "$1:$at" = "$(cat "$CRASH_DIR/at")" ] || return 1
	n=$(($(cat "$CRASH_DIR/skip") - 1))
	echo $n > "$CRASH_DIR/skip"
	[ $n -lt 0 ] || return 1
	kill -9 $me
}
hit before && exit 1
if hit late; then sleep 0.2; fi
"%s" "$@"
rc=$?
hit after
exit $rc
`

// killers are those programs below dir, and the configuration that runs them.
func killers(t *testing.T, dir string, cfg Config) Config {
	t.Helper()
	put := func(name, real string) string {
		path := filepath.Join(dir, name)
		s := strings.ReplaceAll(fmt.Sprintf(killer, real), "$CRASH_DIR", dir)
		if err := os.WriteFile(path, []byte(s), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, p := range plugins {
		put(p, filepath.Join(cfg.PluginDir, p))
	}
	for name, to := range map[string]*string{"nft": &cfg.NFT, "iptables": &cfg.IPTables} {
		real, err := find(*to)
		if err != nil {
			t.Fatal(err)
		}
		*to = put(name, real)
	}
	cfg.PluginDir = dir
	return cfg
}

func TestNothingIsLeftAfterSIGKILLAtAnyStep(t *testing.T) {
	r := newRig(t)
	before := r.warm()
	w := want(world + "/32:80/tcp")
	w.Ports = []Port{{"tcp", 2010, 80}, {"udp", 2010, 53}}
	type step struct {
		at     string // when:program:command
		skip   int    // how often it passes before
		detach bool
	}
	var steps []step
	for _, when := range []string{"before", "after", "late"} {
		for _, p := range plugins {
			steps = append(steps, step{when + ":" + p + ":ADD", 0, false}, step{when + ":" + p + ":DEL", 0, true})
		}
		// Open runs nft and iptables once; attaching runs nft twice more, to grant
		// and to read back.
		steps = append(steps, step{when + ":nft:", 1, false}, step{when + ":nft:", 2, false},
			step{when + ":nft:", 1, true}, step{when + ":iptables:", 1, true})
	}
	for _, gone := range []bool{false, true} {
		for _, s := range steps {
			if gone && !strings.HasPrefix(s.at, "after:") {
				continue
			}
			name := fmt.Sprintf("%s+%d", strings.ReplaceAll(strings.TrimSuffix(s.at, ":"), ":", "-"), s.skip)
			if s.detach {
				name += " detaching"
			}
			if gone {
				name += " and the sandbox with it"
			}
			t.Run(name, func(t *testing.T) {
				r.t = t
				p, err := newPlace(filepath.Join("/mnt", "crash"))
				if err != nil {
					t.Fatal(err)
				}
				ended := false
				end := func() {
					if !ended {
						ended = true
						if err := p.end(); err != nil {
							t.Error(err)
						}
					}
				}
				defer end()
				if s.detach {
					if _, err := r.Attach(r.ctx, "crash", p.path, w); err != nil {
						t.Fatal(err)
					}
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				// Open again whatever fails, for the next.
				defer func() {
					if r.closed() {
						r.reopen(r.cfg)
					}
				}()
				crash(t, r.cfg, crashJob{NetNS: p.path, Want: w, Detach: s.detach}, s.at, s.skip)
				if gone {
					end()
				}
				r.reopen(r.cfg)
				// The sandbox may live; what is half made is removed all the same.
				kept, err := r.Recover(r.ctx, nil)
				if err != nil || len(kept) != 0 {
					t.Fatalf("recover: %v, kept %v", err, kept)
				}
				settled(t, func() bool { return r.state() == before })
				same(t, before, r.state())
				if !gone {
					// And nothing hinders the next one.
					if _, err := r.Attach(r.ctx, "crash", p.path, w); err != nil {
						t.Errorf("attach again: %v", err)
					}
					r.detach("crash")
					same(t, before, r.state())
				}
			})
		}
	}
}

// settled waits for what the kernel does in its own time, such as to remove the
// interfaces of a namespace.
func settled(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

func crash(t *testing.T, cfg Config, j crashJob, at string, skip int) {
	t.Helper()
	dir := t.TempDir()
	j.Config = killers(t, dir, cfg)
	for name, text := range map[string]string{"at": at, "skip": fmt.Sprint(skip), "pid": "0"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	// The shell has the helper's number written before the helper is there.
	cmd := exec.Command("/bin/sh", "-c", `echo $$ > "$0/pid" && exec /proc/`+fmt.Sprint(os.Getpid())+`/exe`, dir)
	cmd.Env = append(os.Environ(), envCrash+"="+string(b))
	cmd.Stderr = os.Stderr
	err = cmd.Run()
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() || s.Signal() != syscall.SIGKILL {
		t.Fatalf("the helper was not killed at %s: %v", at, err)
	}
}
