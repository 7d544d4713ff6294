package api

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// The control channel between a node daemon and an agent is one unix stream
// connection that the agent dials (AgentNodeSocket) and dials again when it
// breaks. Each side sends frames: u32 big-endian length, then a JSON Control.
// The directory of the sockets is closed to the function's uid.
const (
	FunctionRoot    = "/fn"                       // in a sandbox that waits without a function: where the launcher will find its root
	AgentRunDir     = "/run/faasd-sec"            // in the task: the bind-mounted socket directory, mode 0700
	AgentNodeSocket = AgentRunDir + "/node.sock"  // the node listens, the agent dials: control frames
	AgentHTTPSocket = AgentRunDir + "/agent.sock" // the agent listens: AgentPathInvoke, AgentPathBundle
	AgentBinary     = "/.faasd-sec/agent"         // in the task: the agent, bind-mounted read-only, PID 1

	FunctionID = 10001 // user and group of a function whose image names none but root

	EnvBlank = "FAASD_SEC_BLANK" // "1" in PID 1's environment: the sandbox was created without a function

	AgentPathInvoke  = "/invoke" // POST a sealed request; 200 with a sealed reply, or a problem
	AgentPathBundle  = "/bundle" // PUT the sealed bundle; 204, or a problem
	AgentPathPlain   = "/plain"  // any method: a plain function's request, its own path and query in HeaderTarget
	AgentPathNothing = "/"       // not found: what a connection that is opened ahead asks for

	ControlProtocol = 4       // Hello.Protocol
	MaxControlFrame = 1 << 20 // bytes
)

// Control is one frame; exactly one field is set.
type Control struct {
	// Agent to node.
	Hello      *Hello    `json:"hello,omitempty"`       // first frame of each connection; on the first connection SCM_RIGHTS carries the launcher's pidfd with it
	Statement  *Attested `json:"statement,omitempty"`   // answer to Attest
	NeedBundle *Empty    `json:"need_bundle,omitempty"` // PUT the sealed bundle now
	Ready      *Empty    `json:"ready,omitempty"`       // invocations are served
	Failed     *Problem  `json:"failed,omitempty"`      // the sandbox cannot serve and is to be removed
	Exited     *Exited   `json:"exited,omitempty"`      // the function's process ended
	Log        *Log      `json:"log,omitempty"`
	AskOOM     *AskOOM   `json:"ask_oom,omitempty"` // how often was the function OOM killed?

	// Node to agent.
	Attest  *Empty        `json:"attest,omitempty"`  // make a new statement: the last one is getting old
	Bind    *Bind         `json:"bind,omitempty"`    // once, any time after the first Hello
	Waiting *Waiting      `json:"waiting,omitempty"` // at most once, after Bind: who waits for the start
	Mounted *Mounted      `json:"mounted,omitempty"` // once, after Bind
	Keys    *ReleaseReply `json:"keys,omitempty"`    // once, in any order with the two
	Refused *Problem      `json:"refused,omitempty"` // instead of Keys
	OOM     *OOM          `json:"oom,omitempty"`     // answer to AskOOM
	Stop    *Stop         `json:"stop,omitempty"`    // end the function and exit
}

// Empty is a frame without content.
type Empty struct{}

// Hello introduces the agent.
type Hello struct {
	Protocol  int    `json:"protocol"`
	Version   string `json:"version"`
	Statement []byte `json:"statement,omitempty"` // CBOR of Statement, until it is bound
	Bound     bool   `json:"bound"`               // true on a reconnection: the sandbox serves a function already
	Revision  string `json:"revision,omitempty"`
	Ready     bool   `json:"ready,omitempty"`
}

// Bind makes the sandbox one of a revision. Nothing of the function may run
// before Mounted.
type Bind struct {
	Descriptor []byte      `json:"descriptor,omitempty"` // signed; the agent verifies it and takes every setting from it
	Plain      *PlainBind  `json:"plain,omitempty"`      // instead of it: a plain function, for which no keys are released
	Image      ImageConfig `json:"image"`
}

// PlainBind makes the sandbox a plain function's. The agent believes the node what
// it is: who could tell otherwise could read all that it says anyway.
type PlainBind struct {
	Revision string        `json:"revision"` // hex
	Function PlainRevision `json:"function"`
}

// Waiting carries the grant of the invocation that a start is for, so that the
// agent can open it while the function starts. A grant says who may call whom
// from when to when, in clear, and nothing of a message: of that no byte reaches
// an agent before it is ready.
type Waiting struct {
	Grant []byte `json:"grant"`
}

// Mounted says that the function may run: its launcher is in the function's
// cgroup, the function's limits are written, and its root is there.
type Mounted struct {
	UID int `json:"uid"` // the function's ids inside the user namespace, never 0
	GID int `json:"gid"`
	// Inet says that the task asked for a network: a function that serves on the
	// handed socket may open internet sockets, which otherwise it may not.
	Inet bool `json:"inet,omitempty"`
}

// ImageConfig is what a function's process takes from its image.
type ImageConfig struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"`
}

// Attested carries a CBOR Statement.
type Attested struct {
	Statement []byte `json:"statement"`
}

// Exited tells how the function's long-lived process ended.
type Exited struct {
	ExitCode int    `json:"exit_code"`
	Signal   string `json:"signal,omitempty"`
	OOM      bool   `json:"oom"`
}

// Log carries one sealed log message (role 7), or lines of a plain function.
type Log struct {
	Sealed []byte    `json:"sealed,omitempty"`
	Lines  []LogLine `json:"lines,omitempty"`
}

// LogLine is one line that a plain function, or the platform about it, printed.
type LogLine struct {
	Time   int64  `json:"t"` // unix nanoseconds
	Stream int    `json:"s"` // LogOut, LogErr or LogPlatform
	Text   string `json:"x"`
}

// The streams of a log, as docs/envelope.md numbers them.
const (
	LogOut      = 1 // the function's standard output
	LogErr      = 2 // the function's standard error
	LogPlatform = 3 // the agent
)

// AskOOM and OOM: the node reads the kernel's counter for the agent, which
// sees no cgroup. ID pairs answer and question.
type AskOOM struct {
	ID uint64 `json:"id"`
}

// OOM is the answer to AskOOM.
type OOM struct {
	ID    uint64 `json:"id"`
	Kills int64  `json:"kills"` // OOM kills in the function's cgroup since the sandbox began
}

// Stop ends the sandbox: SIGTERM to the function, wait, then SIGKILL.
type Stop struct {
	GraceMs int64 `json:"grace_ms"`
}

// WriteFrame writes one length-prefixed frame in a single Write.
func WriteFrame(w io.Writer, body []byte) error {
	frame, err := appendFrame(nil, body)
	if err != nil {
		return err
	}
	_, err = w.Write(frame)
	return err
}

func appendFrame(to, body []byte) ([]byte, error) {
	if len(body) > MaxControlFrame {
		return to, fmt.Errorf("frame of %d bytes is over the limit of %d", len(body), MaxControlFrame)
	}
	to = slices.Grow(to, 4+len(body))
	return append(binary.BigEndian.AppendUint32(to, uint32(len(body))), body...), nil
}

// ReadFrame reads one frame, refusing a length over MaxControlFrame before it
// allocates. It returns io.EOF only between frames.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxControlFrame {
		return nil, fmt.Errorf("frame of %d bytes is over the limit of %d", n, MaxControlFrame)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("frame body: %w", io.ErrUnexpectedEOF)
	}
	return body, nil
}

// WriteControl sends one control frame.
func WriteControl(w io.Writer, c Control) error {
	frame, err := AppendControl(nil, c)
	if err != nil {
		return err
	}
	_, err = w.Write(frame)
	return err
}

// AppendControl adds one control frame, as WriteControl sends it, to b.
func AppendControl(b []byte, c Control) ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return b, fmt.Errorf("encode control frame: %w", err)
	}
	return appendFrame(b, body)
}

// ReadControl receives one control frame.
func ReadControl(r io.Reader) (Control, error) {
	var c Control
	b, err := ReadFrame(r)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("decode control frame: %w", err)
	}
	return c, nil
}
