package coordinator

// How much of a stack a manifest's numbers may have touched, in bytes, and how
// much is kept in use above that.
const (
	wiped = 32 << 10
	inUse = 40 << 10
)

// deep calls f on a stack that neither grows nor shrinks meanwhile, and leaves
// nothing of f's frames there. Both would move the stack, and leave the former
// one as it was: it does not grow since it was made large enough before, and the
// collector does not shrink one of which a quarter is in use.
//
//go:noinline
func deep(f func()) {
	var above [inUse]byte
	keep(above[:])
	wipeStack()
	f()
	wipeStack()
	keep(above[:])
}

// wipeStack overwrites what finished calls left of their frames below this one.
//
//go:noinline
func wipeStack() {
	var b [wiped]byte
	keep(b[:])
}

// keep zeroes b, which the compiler cannot leave out.
//
//go:noinline
func keep(b []byte) { clear(b) }
