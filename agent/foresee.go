package agent

import (
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// foreseen is how long a grant that was opened ahead is held for its message,
// which the node sends as soon as the function is ready.
const foreseen = 20 * time.Second

// expect is what the function takes as a request.
func (f *function) expect() unseal.Expect {
	return unseal.Expect{Role: sealed.RoleRequest, Name: f.b.name, Context: f.b.revision,
		Senders: &f.b.desc.Config.Policy, MaxQueued: f.b.queued}
}

// foresee opens the grant of the invocation that waits for the function, and
// makes the grant of its reply, while the function starts. What is wrong with the
// grant shows when its message comes. It is called once, after unlock.
func (f *function) foresee(grant []byte) {
	a, err := f.opener.Prepare(grant, f.expect())
	close(f.looked)
	if err != nil {
		return
	}
	time.AfterFunc(foreseen, a.Discard)
	if !f.primed.Swap(true) {
		f.prime(a.Header().ReplyKey)
	}
}
