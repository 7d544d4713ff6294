package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/proxy"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/stack"
)

const (
	runStateDir   = "/var/lib/faasd-sec/run" // below it one directory for each DIR
	runDeploy     = 5 * time.Minute
	watchInterval = 500 * time.Millisecond
	logsPause     = time.Second
)

type runFlags struct {
	build   buildFlags
	listen  string
	state   string
	bin     string
	watch   bool
	verbose bool
	secrets map[string]string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{Use: "run [DIR]", Short: "Run the functions of a directory on this machine, in the sandbox they will have",
		Long: "Build the functions of DIR/function.yml, start a cluster of one node for them alone, with an identity of its own,\n" +
			"deploy them sealed, and serve them as plain HTTP on loopback, through the sealing proxy. What they print appears\n" +
			"here. Ctrl-C removes all of it. What a run leaves that was killed, the next one for the same DIR removes.",
		Example: "  sudo faasd-sec run . &\n  curl --data Ada http://127.0.0.1:8090/function/hello",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.build.file == "" {
				f.build.file = filepath.Join(first(append(args, ".")...), stackFile)
			} else if len(args) > 0 {
				return api.Invalid("--file", "give one of DIR and --file", "there are two")
			}
			ctx, stop := foreground(cmd.Context())
			defer stop()
			return a.runHere(ctx, &f)
		}}
	f.build.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8090", "loopback IP:PORT to serve on; port 0 chooses one")
	fl.BoolVar(&f.watch, "watch", false, "build and deploy again when a file of the directory changes")
	fl.StringToStringVar(&f.secrets, "secret", nil, "a secret's `NAME=FILE` (default CONFIG-DIR/secrets/NAME); repeat")
	fl.StringVar(&f.state, "state", "", "directory for what the cluster keeps while it runs (default one below "+runStateDir+")")
	fl.StringVar(&f.bin, "bin", "", "directory of coordinator, keybroker, node and agent (default: that of this binary)")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "say more on standard error")
	return cmd
}

// localRun is a private cluster with functions of one file.
type localRun struct {
	*app    // with a configuration directory of the run's own
	flags   *runFlags
	cluster *local.Cluster
	client  *client.Client
	id      *unseal.Identity
	pass    []byte
	state   string
	secrets string // directory of the user's own
}

func (a *app) runHere(ctx context.Context, f *runFlags) (retErr error) {
	cfg := proxy.DefaultConfig()
	cfg.Listen = f.listen
	if err := cfg.Validate(); err != nil {
		return err
	}
	if strings.HasPrefix(f.listen, "unix:") {
		return api.Invalid("--listen", "write a loopback IP:PORT", "run serves no socket")
	}
	if os.Geteuid() != 0 {
		return &api.Error{Code: api.CodeForbidden, Message: "sandboxes need root", Remedy: "run it with sudo"}
	}
	file, err := a.loadStack(f.build.file)
	if err != nil {
		return err
	}
	all, err := selected(file, nil)
	if err == nil {
		err = knownSecrets(f.secrets, all)
	}
	if err != nil {
		return err
	}
	state, unlock, err := runState(f, file)
	if err != nil {
		return err
	}
	defer unlock()
	own := *a
	own.configDir, own.identity, own.passphraseFile, own.via, own.trustFirstUse = filepath.Join(state, "user"), defaultIdentity, "", "", false
	lookup := a.lookupEnv
	own.lookupEnv = func(k string) (string, bool) {
		if k == envPassphrase { // of the user's identity, and this is another
			return "", false
		}
		return lookup(k)
	}
	r := &localRun{app: &own, flags: f, state: state, secrets: filepath.Join(a.configDir, "secrets")}
	_, err = os.Stat(r.clusterDir())
	fresh := errors.Is(err, fs.ErrNotExist) // else a killed run's cluster is there, to be taken over and removed
	if err = r.identify(); err == nil {
		err = r.prebuild(ctx, file) // before anything is started: most runs fail here
	}
	if err != nil {
		if fresh {
			err = errors.Join(err, os.RemoveAll(state))
		}
		return err
	}
	if err := r.start(ctx, file); err != nil {
		return err
	}
	defer func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if err := r.cluster.Stop(sctx); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("clean up: %w", err))
			return // the next run goes on from there
		}
		retErr = errors.Join(retErr, os.RemoveAll(state))
	}()
	if err := r.deploy(ctx, file); err != nil {
		return err
	}
	return r.serve(ctx, cfg, file)
}

// runState is the directory of a run, locked: another run of the same functions
// would take it for one that was killed.
func runState(f *runFlags, file *stack.File) (dir string, unlock func(), err error) {
	if dir = f.state; dir == "" {
		abs, err := filepath.Abs(file.Path)
		if err != nil {
			return "", nil, fmt.Errorf("run: %w", err)
		}
		sum := sha256.Sum256([]byte(abs))
		dir = filepath.Join(runStateDir, hex.EncodeToString(sum[:6]))
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", nil, &api.Error{Code: api.CodeInvalid, Field: "--state", Err: err, Message: "cannot make the directory", Remedy: "choose another"}
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, fmt.Errorf("run: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !sameFile(lock) { // its last holder removed it meanwhile
		err = errors.New("the lock changed hands")
	}
	if err != nil {
		lock.Close()
		return "", nil, &api.Error{Code: api.CodeConflict, Field: "DIR", Err: err, Message: "these functions are run already", Remedy: "stop the other run, or give this one another --state"}
	}
	return dir, func() {
		_ = os.Remove(dir + ".lock") // while it is held: who comes next makes a new one
		lock.Close()
		if f.state == "" {
			_ = os.Remove(runStateDir) // only when it is empty
		}
	}, nil
}

// sameFile reports whether an open file is the one at its path.
func sameFile(f *os.File) bool {
	a, aerr := f.Stat()
	b, berr := os.Stat(f.Name())
	return aerr == nil && berr == nil && os.SameFile(a, b)
}

// identify opens the run's own identity, which a run that was killed left behind,
// or makes it: what that one deployed belongs to it.
func (r *localRun) identify() (err error) {
	store, err := r.keystore()
	if err != nil {
		return err
	}
	if _, _, err := store.Public(defaultIdentity); errors.Is(err, fs.ErrNotExist) {
		id, err := unseal.NewIdentity(rand.Reader)
		if err != nil {
			return err
		}
		quiet := *r.app
		quiet.stdout = io.Discard
		if err := quiet.saveIdentity(defaultIdentity, id, true); err != nil {
			return err
		}
	}
	r.id, r.pass, err = r.loadIdentity()
	return err
}

func (r *localRun) clusterDir() string { return filepath.Join(r.state, "cluster") }

func (r *localRun) imagePath(fn *stack.Function) string {
	return filepath.Join(r.state, "images", string(fn.Name)+".tar")
}

// prebuild builds what has a build section.
func (r *localRun) prebuild(ctx context.Context, file *stack.File) error {
	if err := os.MkdirAll(filepath.Join(r.state, "images"), 0o700); err != nil {
		return fmt.Errorf("run: %w", err)
	}
	for i := range file.Functions {
		fn := &file.Functions[i]
		r.noteDockerfile(fn)
		if fn.Build == nil {
			continue // a reference to a registry, with a digest
		}
		if _, err := r.app.build(ctx, fn, &r.flags.build, r.imagePath(fn)); err != nil {
			return err
		}
	}
	return nil
}

func (r *localRun) start(ctx context.Context, file *stack.File) (err error) {
	bin := r.flags.bin
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the binaries beside this one: %w", err)
		}
		bin = filepath.Dir(self)
	}
	// The one node has every label that a function asks for.
	labels := make(map[string]string)
	for i := range file.Functions {
		for k, v := range file.Functions[i].Constraints {
			if old, ok := labels[k]; ok && old != v {
				return api.Invalid(field(&file.Functions[i], "constraints"), "run them apart, with a file for each", fmt.Sprintf("one node cannot have %s=%s and %s=%s", k, old, k, v))
			}
			labels[k] = v
		}
	}
	var list []string
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	r.cluster, err = local.Start(ctx, local.Config{Nodes: 1, State: r.clusterDir(), Listen: "127.0.0.1:0", Bin: bin,
		Labels: []string{strings.Join(list, ",")}, Log: r.logger(r.flags.verbose)})
	if err != nil {
		return err
	}
	gateway := r.cluster.Gateway()
	err = errors.Join(client.PinBroker(r.configDir, gateway, r.cluster.Broker()), client.PinOpener(r.configDir, gateway, r.cluster.ManifestKeys()))
	if err == nil {
		r.client, err = r.connect(gateway, r.id)
	}
	if err != nil {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return errors.Join(err, r.cluster.Stop(sctx))
	}
	return nil
}

// deploy makes the functions current, as built last. What admits callers and
// evidence elsewhere is set to what there is here.
func (r *localRun) deploy(ctx context.Context, file *stack.File) error {
	ctx, cancel := context.WithTimeout(ctx, runDeploy)
	defer cancel()
	for i := range file.Functions {
		fn := file.Functions[i]
		fn.Callers.Owner, fn.Attestation = !fn.Callers.Any, []string{stack.DefaultAttestation}
		flags := &deployFlags{build: r.flags.build, secrets: make(map[string]string)}
		for _, name := range fn.Secrets {
			flags.secrets[name] = filepath.Join(r.secrets, name)
			if given, ok := r.flags.secrets[name]; ok {
				flags.secrets[name] = given
			}
		}
		if fn.Build != nil {
			flags.imageTar = r.imagePath(&fn)
		}
		d := &deployer{app: r.app, client: r.client, flags: flags, id: r.id, gateway: r.cluster.Gateway(), keys: client.NewKeyring(r.keysDir(), r.pass, rand.Reader)}
		if _, err := d.deploy(ctx, &fn); err != nil {
			return err
		}
	}
	return nil
}

// serve runs the proxy, the logs and the watch until ctx ends or a part fails.
func (r *localRun) serve(ctx context.Context, cfg proxy.Config, file *stack.File) error {
	defer r.client.Close()
	ctx, cancel := context.WithCancel(ctx)
	var jobs sync.WaitGroup
	defer jobs.Wait()
	defer cancel()
	failed := make(chan error, 1) // the first one
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
		cancel()
	}
	for i := range file.Functions {
		name := file.Functions[i].Name
		jobs.Go(func() { r.follow(ctx, name, fail) })
	}
	if r.flags.watch {
		jobs.Go(func() { r.watch(ctx, file) })
	}
	jobs.Go(func() {
		if err := r.cluster.Wait(ctx); err != nil {
			fail(err)
		}
	})
	err := r.serveProxy(ctx, cfg, proxy.Deps{Callers: map[string]proxy.Invoker{"": r.client}, Log: r.logger(r.flags.verbose)}, func(url string) {
		for i := range file.Functions {
			fmt.Fprintf(r.stdout, "serves    %s%s%s\n", url, api.GatewayPathInvoke, file.Functions[i].Name.Short())
		}
		fmt.Fprintf(r.stdout, "ready     %s\n", url)
	})
	select {
	case ferr := <-failed:
		err = errors.Join(err, ferr)
	default:
	}
	return err
}

// follow prints a function's log. It has none until it was started once. Where
// nothing can be printed any more the run ends.
func (r *localRun) follow(ctx context.Context, name api.FunctionName, fail func(error)) {
	show := func(l client.LogLine, err error) error {
		err = r.printLine(l, err)
		if err != nil {
			fail(err)
		}
		return err
	}
	for ctx.Err() == nil {
		if err := r.client.Logs(ctx, name, true, show); err != nil && ctx.Err() == nil {
			r.notef("warning: the log of %s: %s", name.Short(), one(err.Error()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(logsPause):
		}
	}
}

// watch builds and deploys again after a change, once the files rest.
func (r *localRun) watch(ctx context.Context, file *stack.File) {
	dir := filepath.Dir(file.Path)
	deployed := fingerprintOf(dir)
	last := deployed
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := fingerprintOf(dir)
		if now == deployed || now != last {
			last = now
			continue
		}
		deployed = now
		if err := r.reload(ctx, file.Path); err != nil {
			r.printError(err)
			continue
		}
		r.notef("deployed again")
	}
}

func (r *localRun) reload(ctx context.Context, path string) error {
	file, err := r.loadStack(path)
	if err != nil {
		return err
	}
	if err := r.prebuild(ctx, file); err != nil {
		return err
	}
	return r.deploy(ctx, file)
}

// fingerprintOf tells a change of a directory's files by names, sizes and times.
func fingerprintOf(dir string) [sha256.Size]byte {
	h := sha256.New()
	_ = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it went meanwhile: the next look tells
		}
		if e.IsDir() && (e.Name() == buildDir || e.Name() == ".git") {
			return fs.SkipDir
		}
		if info, err := e.Info(); err == nil && !e.IsDir() {
			fmt.Fprintf(h, "%q %d %d\n", p, info.Size(), info.ModTime().UnixNano())
		}
		return nil
	})
	return [sha256.Size]byte(h.Sum(nil))
}
