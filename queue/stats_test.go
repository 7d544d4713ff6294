package queue

import "testing"

func TestDeadLettersAreCountedForWhoeverOpensTheQueue(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	eventually(t, "there is none", func() bool { return m.Stats().Dead == 0 })
	m.accept(t, call("1"))
	if err := m.claim(t).Bury(t.Context(), Failure{}); err != nil {
		t.Fatal(err)
	}
	other := open(t, etcd, prefix, "b")
	eventually(t, "there is one", func() bool { return other.Stats().Dead == 1 })
}
