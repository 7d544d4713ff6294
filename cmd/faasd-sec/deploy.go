package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/stack"
)

type deployFlags struct {
	build    buildFlags
	doBuild  bool
	imageTar string
	rotate   bool
	plain    bool
	secrets  map[string]string
	timeout  *time.Duration
	noWait   bool

	noOverlap bool
}

func (a *app) deployCommand() *cobra.Command {
	var d deployFlags
	cmd := &cobra.Command{Use: "deploy [FUNCTION...]", Short: "Deploy the functions of a function.yml",
		Long: "Push the image, seal code, environment and secrets to the function, deposit its keys with the pinned\n" +
			"key broker, and make it current. Functions keep running until the new revision is there. Images are\n" +
			"those that build made; --build makes them now.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel, err := within(cmd.Context(), *d.timeout)
			if err != nil {
				return err
			}
			defer cancel()
			return a.deploy(ctx, args, &d)
		}}
	d.build.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&d.doBuild, "build", false, "build the images first")
	f.StringVar(&d.imageTar, "image-tar", "", "deploy this image, an OCI layout or docker save in a tar")
	f.BoolVar(&d.rotate, "rotate", false, "give the function a new decryption key; the former one is taken for another day")
	f.BoolVar(&d.plain, "plain", false, "deploy as plain functions: nothing of them is sealed, as with OpenFaaS")
	f.StringToStringVar(&d.secrets, "secret", nil, "a secret's `NAME=FILE` (default CONFIG-DIR/secrets/NAME); repeat")
	f.BoolVar(&d.noOverlap, "no-overlap", false, "let the revision before start nowhere any more, also while the new one is on its way")
	f.BoolVar(&d.noWait, "no-wait", false, "do not wait until the new revision serves")
	d.timeout = timeoutFlag(cmd, 10*time.Minute)
	a.trustFlag(cmd)
	return cmd
}

func (a *app) deploy(ctx context.Context, names []string, d *deployFlags) error {
	load := stack.Load
	if d.plain {
		load = stack.LoadPlain
	}
	f, err := a.loadStackWith(load, d.build.file)
	if err != nil {
		return err
	}
	list, err := selected(f, names)
	if err != nil {
		return err
	}
	if d.plain && d.noOverlap {
		return api.Invalid("--no-overlap", "leave it out", "a plain function has no keys to hold back")
	}
	if d.plain && (d.rotate || len(d.secrets) > 0) {
		return api.Invalid("--plain", "leave --rotate and --secret out", "a plain function has no keys, and its secrets are the gateway's: faas-cli secret create")
	}
	if err := knownSecrets(d.secrets, list); err != nil {
		return err
	}
	if d.imageTar != "" && len(list) != 1 {
		return api.Invalid("--image-tar", "name one function", fmt.Sprintf("it is one image, and %d functions would be deployed", len(list)))
	}
	id, pass, err := a.loadIdentity()
	if err != nil {
		return err
	}
	gateway := a.gatewayURL(f.Gateway)
	c, err := a.connect(gateway, id)
	if err != nil {
		return err
	}
	defer c.Close()
	one := &deployer{app: a, client: c, flags: d, id: id, gateway: gateway,
		keys: client.NewKeyring(a.keysDir(), pass, rand.Reader)}
	var done []client.Deployed
	for _, fn := range list {
		result, err := one.deploy(ctx, fn)
		if err == nil && !d.noWait {
			err = one.await(ctx, result)
		}
		if err != nil {
			return errors.Join(err, a.printDeployed(done))
		}
		if !result.Plain {
			one.noteStale(ctx, result)
		}
		done = append(done, result)
	}
	return a.printDeployed(done)
}

// knownSecrets refuses a --secret that no function would get.
func knownSecrets(given map[string]string, list []*stack.Function) error {
	for name := range given {
		if !slices.ContainsFunc(list, func(fn *stack.Function) bool { return slices.Contains(fn.Secrets, name) }) {
			return api.Invalid("--secret", "correct the name, or list it under secrets in function.yml", fmt.Sprintf("no function that would be deployed has a secret %q", name))
		}
	}
	return nil
}

func (a *app) printDeployed(list []client.Deployed) error {
	if a.json() {
		return a.printJSON(list)
	}
	for _, d := range list {
		what := "deployed"
		if d.Plain {
			fmt.Fprintf(a.stdout, "deployed %s, plain: not sealed, revision %s, image %s\n", d.Name.Short(), short(d.Revision), d.Image)
			continue
		}
		if !d.Changed {
			what = "unchanged, signed anew"
		}
		fmt.Fprintf(a.stdout, "%s %s: revision %s, image %s\n", what, d.Name.Short(), short(d.Revision), d.Image)
	}
	return nil
}

// deployer deploys the functions of one file.
type deployer struct {
	*app
	client  *client.Client
	flags   *deployFlags
	id      *unseal.Identity
	gateway string
	keys    *client.Keyring
}

func (d *deployer) deploy(ctx context.Context, fn *stack.Function) (client.Deployed, error) {
	if fn.Plain != nil {
		return d.deployPlain(ctx, fn)
	}
	dep, err := d.deployment(fn)
	if err != nil {
		return client.Deployed{}, err
	}
	p := d.newProgress("deploy " + fn.Name.Short())
	defer p.end()
	remote, err := d.registry(ctx, p)
	if err != nil {
		return client.Deployed{}, err
	}
	img, err := d.image(ctx, fn, remote)
	if err != nil {
		return client.Deployed{}, err
	}
	dep.ImageRef, dep.ImageDigest = img.ref, img.digest
	behindWatchdog(&dep, img.entry)
	dep.PushBundle = func(ctx context.Context, repo string, blob *os.File, size int64) (string, error) {
		return remote.PushBlob(ctx, repo, blob, size)
	}
	return d.client.Deploy(ctx, dep)
}

// registry pushes through the gateway, or the first of the others that answers where
// it does not, with requests signed by the identity.
func (d *deployer) registry(ctx context.Context, p *progress) (*image.Remote, error) {
	u, err := url.Parse(answering(ctx, append([]string{d.gateway}, d.otherGateways("")...)))
	if err != nil {
		return nil, api.Invalid("gateway", "give a URL such as "+defaultGateway, "it does not parse")
	}
	return &image.Remote{Registry: u.Host, PlainHTTP: u.Scheme == "http", Progress: p.bytes,
		Transport: &reqauth.Transport{Base: client.NewTransport(), Unsigned: reqauth.RegistryUpload,
			Signer: &reqauth.Signer{Key: d.id.Signer(), Random: rand.Reader, Now: time.Now}}}, nil
}

// knockTime is how long a gateway may take to accept a connection.
const knockTime = 2 * time.Second

// answering is the first gateway that accepts a connection, and the first one where
// none does, for the error to be about.
func answering(ctx context.Context, gateways []string) string {
	if len(gateways) == 1 {
		return gateways[0]
	}
	for _, g := range gateways {
		u, err := url.Parse(g)
		if err != nil {
			continue
		}
		host := u.Host
		if u.Port() == "" {
			host = net.JoinHostPort(u.Hostname(), u.Scheme) // "http" and "https" are names of ports
		}
		kctx, cancel := context.WithTimeout(ctx, knockTime)
		conn, err := new(net.Dialer).DialContext(kctx, "tcp", host)
		cancel()
		if err == nil {
			_ = conn.Close()
			return g
		}
	}
	return gateways[0]
}

func (d *deployer) noImage(fn *stack.Function, path string, err error) error {
	if _, serr := os.Stat(path); serr == nil || d.flags.imageTar != "" {
		return &api.Error{Code: api.CodeInvalid, Field: "image", Err: err, Message: "cannot open the image " + path, Remedy: "build it again"}
	}
	remedy := "run faasd-sec build, or deploy with --build"
	if fn.Build == nil {
		remedy = "add a build section and run faasd-sec build, or deploy with --image-tar"
	}
	return &api.Error{Code: api.CodeNotFound, Field: field(fn, "image"), Message: "there is no built image " + path, Remedy: remedy}
}

// elsewhere reports whether a reference names a registry, by Docker's rule: its
// first part has a dot or a port, or is localhost.
func elsewhere(ref string) bool {
	host, _, more := strings.Cut(ref, "/")
	return more && (strings.ContainsAny(host, ".:") || host == "localhost")
}

func field(fn *stack.Function, name string) string {
	return "functions." + fn.Name.Short() + "." + name
}

func (d *deployer) deployment(fn *stack.Function) (client.Deployment, error) {
	dep := client.Deployment{Name: fn.Name, Mode: fn.Mode, Upstream: fn.Upstream, Process: fn.Process, BundlePath: fn.BundlePath,
		Resources: fn.Resources, Read: fn.Read, Write: fn.Write, Exec: fn.Exec, Start: fn.Start, Idle: fn.Idle, MaxQueued: fn.MaxQueued,
		MaxInFlight: fn.MaxInFlight, Constraints: fn.Constraints, AnyCaller: fn.Callers.Any, Attestation: fn.Attestation,
		Keys: d.keys, Rotate: d.flags.rotate, NoOverlap: d.flags.noOverlap, Scale: fn.Scale, Labels: fn.Labels, Annotations: fn.Annotations}
	if fn.Callers.Owner {
		dep.Callers = append(dep.Callers, d.id.SigningKey().Fingerprint())
	}
	for i, s := range fn.Callers.Listed {
		f, err := sealed.ParseFingerprint(s)
		if err != nil {
			return dep, api.Invalid(field(fn, fmt.Sprintf("sealed.callers[%d]", i)), "give 64 hex digits", "it is not a fingerprint")
		}
		dep.Callers = append(dep.Callers, f)
	}
	if fn.Needs != nil {
		b := fn.Needs.Bounds
		for i, s := range fn.Needs.Listed {
			f, err := sealed.ParseFingerprint(s)
			if err != nil {
				return dep, api.Invalid(field(fn, fmt.Sprintf("needs.initiators[%d]", i)), "give 64 hex digits", "it is not a fingerprint")
			}
			b.Initiators = append(b.Initiators, f)
		}
		slices.SortFunc(b.Initiators, func(x, y sealed.Fingerprint) int { return slices.Compare(x[:], y[:]) })
		dep.Bounds = &b
	}
	if fn.Bundle != "" {
		dep.Bundle.Dir = filepath.Join(fn.Dir, fn.Bundle)
	}
	var err error
	if dep.Bundle.Env, err = environment(fn); err != nil {
		return dep, err
	}
	dep.Bundle.Secrets, err = d.secrets(fn)
	return dep, err
}

// maxEnvFile bounds an environment file, in bytes; agents take less.
const maxEnvFile = 1 << 20

// environment joins environment files and the function's own, which wins.
func environment(fn *stack.Function) (map[string]string, error) {
	env := make(map[string]string)
	for i, name := range fn.EnvFiles {
		at := field(fn, fmt.Sprintf("environment_file[%d]", i))
		path := filepath.Join(fn.Dir, name)
		b, err := readAtMost(path, maxEnvFile)
		if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: at, Err: err, Message: "cannot read it", Remedy: "create it, or correct the path, which is relative to function.yml"}
		}
		var f struct {
			Environment map[string]string `yaml:"environment"`
		}
		if err := yaml.Unmarshal(b, &f); err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: at, Message: path + " is not YAML with a mapping \"environment\" of names to values",
				Remedy: "write \"environment:\" and below it one \"NAME: value\" on each line"}
		}
		maps.Copy(env, f.Environment)
	}
	maps.Copy(env, fn.Environment)
	return env, nil
}

// secrets reads the files of the secrets that a function names.
func (d *deployer) secrets(fn *stack.Function) (map[string][]byte, error) {
	out := make(map[string][]byte, len(fn.Secrets))
	for i, name := range fn.Secrets {
		path, given := d.flags.secrets[name]
		if !given {
			path = filepath.Join(d.configDir, "secrets", name)
		}
		info, err := os.Stat(path)
		if err == nil {
			if !given && info.Mode().Perm()&0o077 != 0 {
				d.notef("warning: other users of this machine can read %s: chmod 600 it", path)
			}
			out[name], err = readAtMost(path, client.MaxBundleSecret)
		}
		if errors.Is(err, errTooLong) {
			return nil, api.Invalid(field(fn, fmt.Sprintf("secrets[%d]", i)), "put it into the bundle's files", err.Error())
		}
		if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: field(fn, fmt.Sprintf("secrets[%d]", i)), Err: err, Message: fmt.Sprintf("no value for secret %q", name),
				Remedy: fmt.Sprintf("write it to %s, or give --secret %s=FILE", filepath.Join(d.configDir, "secrets", name), name)}
		}
	}
	return out, nil
}
