package stage

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Register holds the result of a call for later calls.
type Register uint8

// Registers is how many a program may use, a power of 2.
const Registers = 16

// registers is the same for the code that runs in the child.
const registers = Registers

// accepts is how many error numbers a call may accept.
const accepts = 2

// Arg is an argument of a call: a number, an address, or a register.
type Arg struct {
	value    uintptr
	register bool
}

// Num is a number.
func Num[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](n T) Arg {
	return Arg{value: uintptr(n)}
}

// From is what an earlier call put into r.
func From(r Register) Arg { return Arg{value: uintptr(r), register: true} }

// call is one system call as the child reads it. It holds no Go pointer: the
// child must never run a write barrier, and what args point at is kept alive
// by the program.
type call struct {
	number  uintptr
	args    [6]uintptr
	from    uint8 // bit i: args[i] is the number of a register
	into    int8  // register for the result, or -1
	skip    uint8 // how many calls to leave out after success
	exactly int32 // the only result that is a success, or -1 for any
	accept  [accepts]acceptance
}

// acceptance is an error that the program goes on after.
type acceptance struct {
	errno uint32 // 0 is none
	skip  uint32
}

// Program is a list of system calls for a child to make.
type Program struct {
	calls   []call
	what    []string // for people, by call
	keep    []any    // what arguments point at
	regs    *[registers]uintptr
	report  *[2]uint32
	control *os.File // the child's end; closed in the parent once the child runs
	parent  *os.File
}

// recordSize is the size of a message of the child: the number of a call, and
// the errno that it failed with.
const recordSize = 8

// ready is the number of a call that does not exist: the child says with it
// that it waits.
const ready = 1<<32 - 1

// New makes an empty program with its connection to the parent. Close it.
func New() (*Program, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to the init process: %w", err)
	}
	// Only the parent's end is non-blocking: the child waits in read itself.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, fmt.Errorf("connect to the init process: %w", err)
	}
	return &Program{
		regs: new([registers]uintptr), report: new([2]uint32),
		parent: os.NewFile(uintptr(fds[0]), "init"), control: os.NewFile(uintptr(fds[1]), "control"),
		calls: make([]call, 0, 192), what: make([]string, 0, 192),
	}, nil
}

// Close releases a program that no child runs. After Start there is nothing
// left to close.
func (p *Program) Close() {
	if p.control != nil {
		_ = p.control.Close()
	}
	if p.parent != nil {
		_ = p.parent.Close()
	}
}

// Call appends the system call number; what tells people which one it is.
func (p *Program) Call(what string, number uintptr, args ...Arg) *Step {
	c := call{number: number, into: -1, exactly: -1}
	for i, a := range args {
		c.args[i] = a.value
		if a.register {
			c.from |= 1 << i
		}
	}
	p.calls = append(p.calls, c)
	p.what = append(p.what, what)
	return &Step{p: p, at: len(p.calls) - 1}
}

// Step is a call that was appended.
type Step struct {
	p  *Program
	at int
}

// Into keeps the call's result in r.
func (s *Step) Into(r Register) *Step {
	s.p.calls[s.at].into = int8(r)
	return s
}

// Exactly makes every result but n a failure.
func (s *Step) Exactly(n int32) *Step {
	s.p.calls[s.at].exactly = n
	return s
}

// Accept goes on after the error errno, leaving the next skip calls out.
func (s *Step) Accept(errno unix.Errno, skip int) *Step {
	a := &s.p.calls[s.at].accept
	for i := range a {
		if a[i].errno == 0 {
			a[i] = acceptance{errno: uint32(errno), skip: uint32(skip)}
			return s
		}
	}
	panic("stage: a call accepts too many errors") // a mistake in this module, found by its first test
}

// Skip leaves the next n calls out when this one succeeds.
func (s *Step) Skip(n int) *Step {
	s.p.calls[s.at].skip = uint8(n)
	return s
}

// Text is the address of s with a NUL behind it, which it must not contain.
func (p *Program) Text(s string) Arg {
	b := make([]byte, len(s)+1)
	copy(b, s)
	return p.Bytes(b)
}

// Bytes is the address of b, which must not be changed any more.
func (p *Program) Bytes(b []byte) Arg {
	p.keep = append(p.keep, b)
	return Arg{value: uintptr(unsafe.Pointer(unsafe.SliceData(b)))}
}

// Words is b in the machine's byte order.
func (p *Program) Words(words ...uint32) Arg {
	var b []byte
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return p.Bytes(b)
}

// Texts is the address of a list of texts that ends with NULL, as execve
// wants it.
func (p *Program) Texts(list []string) Arg {
	ptrs := make([]uintptr, 0, len(list)+1)
	for _, s := range list {
		ptrs = append(ptrs, p.Text(s).value)
	}
	return p.addresses(append(ptrs, 0))
}

// Struct is the address of a structure that begins with a 64-bit number and
// goes on with an address, which is how the kernel lays out sock_fprog.
func (p *Program) Struct(n uint64, address Arg) Arg {
	return p.addresses([]uintptr{uintptr(n), address.value})
}

func (p *Program) addresses(list []uintptr) Arg {
	p.keep = append(p.keep, list)
	return Arg{value: uintptr(unsafe.Pointer(unsafe.SliceData(list)))}
}

// Wait has the child wait for one Proceed of the parent. If the parent ends
// instead, so does the child.
func (p *Program) Wait(what string) {
	buf := p.Bytes(make([]byte, 1))
	p.Call(what, unix.SYS_READ, p.controlFD(), buf, Num(1)).Exactly(1)
}

// Ready has the child tell the parent that it got this far.
func (p *Program) Ready() {
	p.Call("report to the shim", unix.SYS_WRITE, p.controlFD(), p.Words(ready, 0), Num(recordSize)).Exactly(recordSize)
}

// CloseOthers closes every descriptor from 3 on but keep and the connection to
// the parent, all of which execve closes.
func (p *Program) CloseOthers(keep ...int) {
	const what = "close inherited files"
	stay := append([]int{int(p.controlFD().value)}, keep...)
	slices.Sort(stay)
	from := 3
	for _, fd := range stay {
		if fd > from {
			p.Call(what, unix.SYS_CLOSE_RANGE, Num(from), Num(fd-1), Num(0))
		}
		from = max(from, fd+1)
	}
	p.Call(what, unix.SYS_CLOSE_RANGE, Num(from), Num(uint32(1<<32-1)), Num(0))
}

func (p *Program) controlFD() Arg {
	// The file stays open in the parent until after clone, under this number.
	conn, err := p.control.SyscallConn()
	if err != nil {
		panic("stage: the program is closed")
	}
	var n uintptr
	_ = conn.Control(func(fd uintptr) { n = fd }) // fails on a closed file alone
	runtime.KeepAlive(p.control)
	return Arg{value: n}
}
