package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Environment of PID 1, set by whoever creates the task.
const (
	EnvUID = "FAASD_SEC_UID" // the function's user inside, decimal, above 0
	EnvGID = "FAASD_SEC_GID" // the function's group inside, decimal, above 0

	// gmsm reads it when it is loaded: with it single SM4 blocks are computed
	// without tables, whose access pattern a neighbour on the same core can see.
	EnvSM4 = "FORCE_SM4BLOCK_AESNI"
)

// RequiredEnv is what PID 1's environment must hold for a function that runs
// as uid and gid.
func RequiredEnv(uid, gid int) []string {
	return []string{fmt.Sprintf("%s=%d", EnvUID, uid), fmt.Sprintf("%s=%d", EnvGID, gid), EnvSM4 + "=1"}
}

// Config makes an Agent.
type Config struct {
	Version    string           // told to the node
	RunDir     string           // holds the sockets
	SecretsDir string           // where "secrets/" of a bundle goes
	Launcher   launcher.Command // how to start the launcher, and as whom
	Processors func(cpu uint64) // told the function's CPU limit in millicores when it is known; nil for nothing
	Rest       func()           // gives memory back to the system, while there is no function yet, before the start is rehearsed; nil for neither
	Confine    func() error     // called once the launcher runs; Confine, or nil for nothing
	ReapAll    bool             // collect every child, adopted ones too: as PID 1
	Signals    <-chan os.Signal // forwarded to the function; nil for none
	Logger     *slog.Logger     // what the agent says of itself; never of a payload
	Now        func() time.Time
	Random     io.Reader

	DialTimeout time.Duration // of the node's socket
	Redial      time.Duration // between attempts to reach the node
	FrameWrite  time.Duration // for one control frame
	Linger      time.Duration // after a failure, for the node to take the sandbox away
	StopGrace   time.Duration // for the function, when ctx ends without a Stop frame
	Forget      time.Duration // between two looks for grants that have ended, whose seeds are wiped

	HoldBytes  int64 // of request bodies that wait decrypted, all together
	ReadBytes  int64 // of requests that are read whole at once, all together; a sealed one takes some three times its size until it is answered, a plain one its size
	SpoolBytes int64 // of request bodies and replies spooled in memory, all together
	ReplaySize int   // messages remembered
	LogBuffer  int   // bytes of log text that wait for the node
}

// DefaultConfig fits the memory that api.AgentOverhead reserves.
func DefaultConfig() Config {
	return Config{
		RunDir: api.AgentRunDir, SecretsDir: "/var/openfaas/secrets", Logger: slog.New(slog.DiscardHandler),
		Now: time.Now, Random: rand.Reader,
		DialTimeout: 5 * time.Second, Redial: 100 * time.Millisecond, FrameWrite: 5 * time.Second,
		Linger: 10 * time.Second, StopGrace: 5 * time.Second, Forget: time.Minute,
		HoldBytes: 8 << 20, ReadBytes: 8 << 20, SpoolBytes: 10 << 20, ReplaySize: 1 << 18, LogBuffer: 512 << 10,
	}
}

func (c *Config) check() error {
	switch {
	case c.RunDir == "" || c.SecretsDir == "":
		return errors.New("agent: RunDir and SecretsDir are required")
	case c.Logger == nil || c.Now == nil || c.Random == nil:
		return errors.New("agent: Logger, Now and Random are required: begin with DefaultConfig")
	case c.Redial <= 0 || c.DialTimeout <= 0 || c.FrameWrite <= 0 || c.Linger < 0 || c.StopGrace <= 0 || c.Forget <= 0:
		return errors.New("agent: times must be above 0: begin with DefaultConfig")
	case c.HoldBytes < unseal.HoldLimit || c.ReadBytes < inlineSealed || c.SpoolBytes < 0 || c.ReplaySize <= 0 || c.LogBuffer <= 0:
		return fmt.Errorf("agent: HoldBytes must be at least %d, ReadBytes %d, the other bounds above 0", unseal.HoldLimit, inlineSealed)
	}
	return nil
}

func (c *Config) nodeSocket() string {
	return filepath.Join(c.RunDir, filepath.Base(api.AgentNodeSocket))
}

func (c *Config) httpSocket() string {
	return filepath.Join(c.RunDir, filepath.Base(api.AgentHTTPSocket))
}
