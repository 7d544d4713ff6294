package gossip

import (
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// A member that is cut off is doubted before it is taken for dead, once, and
// those that answer are not.
func TestAMemberThatDoesNotAnswerIsDoubtedBeforeItIsDead(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		var mu sync.Mutex
		doubted := map[string]int{}
		var meshes []*Mesh
		for i := range 4 {
			c := simConfig(net, nodeName(i))
			if i > 0 {
				c.Seeds = []string{meshes[0].Addr().String()}
			} else {
				c.Suspect = func(id string) {
					mu.Lock()
					defer mu.Unlock()
					doubted[id]++
				}
			}
			meshes = append(meshes, join(t, c))
		}
		defer shut(t, meshes...)
		eventually(t, 30*time.Second, "whole", all(meshes, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == 4 }))
		lost := meshes[3]
		net.split(map[string]bool{lost.Addr().String(): true})
		doubts := func() (of, all int) {
			mu.Lock()
			defer mu.Unlock()
			for _, k := range doubted {
				all += k
			}
			return doubted[lost.id], all
		}
		eventually(t, time.Minute, "doubted", func() bool { of, _ := doubts(); return of > 0 })
		if _, there := node(meshes[0].Snapshot(), lost.id); !there {
			t.Error("it was dead before anybody doubted")
		}
		eventually(t, time.Minute, "dead", all(meshes[:1], lacksMember(lost.id)))
		if of, all := doubts(); of != 1 || all != 1 {
			t.Errorf("%d doubts of it, %d in all", of, all)
		}
		net.split(nil)
	})
}

// A member that was cut off for a moment, and has nothing new to tell when it
// comes back, is back with its load: without one nobody places anything there.
func TestAQuietMemberThatComesBackHasItsLoad(t *testing.T) {
	bubble(t, func(t *testing.T) {
		net := newSimNet()
		var meshes []*Mesh
		for i := range 4 {
			c := simConfig(net, nodeName(i))
			c.SyncInterval = 40 * time.Second
			if i > 0 {
				c.Seeds = []string{meshes[0].Addr().String()}
			}
			meshes = append(meshes, join(t, c))
		}
		defer shut(t, meshes...)
		eventually(t, 30*time.Second, "whole", all(meshes, func(m *Mesh) bool { return len(m.Snapshot().Nodes) == 4 }))
		quiet := meshes[3]
		load := api.NodeLoad{}
		eventually(t, time.Minute, "its load", func() bool { // packets are lost, and said once
			load = setLoad(t, quiet, api.NodeLoad{Free: api.Resources{CPU: 8000 - load.Free.CPU}})
			time.Sleep(3 * time.Second)
			return sees(quiet.id, load.Seq)(meshes[0])
		})
		net.split(map[string]bool{quiet.Addr().String(): true})
		eventually(t, time.Minute, "dead", all(meshes[:1], lacksMember(quiet.id)))
		net.split(nil)
		eventually(t, 5*time.Minute, "a member again", func() bool { return !lacksMember(quiet.id)(meshes[0]) })
		eventually(t, time.Second, "its load again", all(meshes[:1], sees(quiet.id, load.Seq)))
	})
}
