package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sbom"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
	"github.com/faasd-sec/faasd-sec/stack"
)

// provenance attaches to a pushed image who signs for it and what is in it.
func (d *deployer) provenance(ctx context.Context, remote *image.Remote, repo, digest string, img *image.Image) error {
	attached, err := registryReader(d.gateway, d.id)
	if err != nil {
		return err
	}
	own := d.id.SigningKey().Fingerprint()
	found, err := attached.Attached(ctx, repo, digest, image.TypeSignature)
	if err != nil {
		return err
	}
	signed := false
	for _, content := range found {
		s, err := image.VerifySignature(content)
		signed = signed || err == nil && s.Signer == own && s.Repository == repo && s.Digest == digest
	}
	if !signed {
		content, err := image.Sign(rand.Reader, d.id.Signer(), d.id.SigningKey(), image.Statement{Repository: repo, Digest: digest, Time: time.Now()})
		if err != nil {
			return err
		}
		if _, err := remote.Attach(ctx, repo, img.Image, image.TypeSignature, content); err != nil {
			return err
		}
	}
	if found, err = attached.Attached(ctx, repo, digest, image.TypeSBOM); err != nil || len(found) > 0 {
		return err // it is of the digest alone: the first one says all
	}
	var s sbom.Scanner
	if err := s.Image(img.Image); err != nil {
		return err
	}
	b, err := s.Encode(sbom.Subject{Name: repo, Digest: digest})
	if err != nil {
		return err
	}
	_, err = remote.Attach(ctx, repo, img.Image, image.TypeSBOM, b)
	return err
}

// registryReader reads from the gateway's registry as an identity.
func registryReader(gateway string, id *unseal.Identity) (*image.Blobs, error) {
	u, err := url.Parse(strings.TrimRight(gateway, "/"))
	if err != nil {
		return nil, api.Invalid("gateway", "give a URL such as "+defaultGateway, "it does not parse")
	}
	return image.NewBlobs(u.String(), &http.Client{Transport: &reqauth.Transport{Base: client.NewTransport(), Unsigned: reqauth.RegistryUpload,
		Signer: &reqauth.Signer{Key: id.Signer(), Random: rand.Reader, Now: time.Now}}}), nil
}

func (a *app) sbomCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: "sbom FUNCTION", Short: "Print what a function's image is made of, as CycloneDX",
		Long: "Print the bill of materials that deploy attached to the function's image, CycloneDX in JSON. With -f, make it of the\n" +
			"image that build made, and of the sealed bundle's files, which are listed nowhere else.",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				return a.localSBOM(file, args[0])
			}
			return a.sbom(cmd.Context(), args[0])
		}}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the function.yml of a function that was built here")
	return cmd
}

// sbom prints the one in the registry, of the image that the gateway names.
func (a *app) sbom(ctx context.Context, function string) error {
	name, err := api.ParseFunctionName(function)
	if err != nil {
		return err
	}
	id, pass, err := a.loadIdentity()
	if err != nil {
		return err
	}
	clear(pass)
	c, err := a.connect(a.gatewayURL(""), id)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	st, err := c.Describe(ctx, name)
	if err != nil {
		return err
	}
	repo, digest, ok := strings.Cut(st.Image, "@")
	if !ok || api.NamesRegistry(repo) {
		return &api.Error{Code: api.CodeNotFound, Field: "image", Message: one(st.Image) + " is in another registry", Remedy: "ask there for what refers to it"}
	}
	attached, err := registryReader(a.gatewayURL(""), id)
	if err != nil {
		return err
	}
	found, err := attached.Attached(ctx, repo, digest, image.TypeSBOM)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return &api.Error{Code: api.CodeNotFound, Field: "image", Message: "no bill of materials is attached to " + one(st.Image), Remedy: "its owner deploys it again (faasd-sec deploy)"}
	}
	if len(found) > 1 {
		a.notef("warning: %d are attached, by whoever may push; this is the first", len(found))
	}
	return a.print(found[0])
}

// localSBOM lists a built image and the bundle beside it.
func (a *app) localSBOM(file, function string) error {
	f, err := a.loadStack(file)
	if err != nil {
		return err
	}
	fn, err := f.Find(function)
	if err != nil {
		return err
	}
	img, err := image.OpenArchive(builtPath(fn))
	if err != nil {
		return &api.Error{Code: api.CodeNotFound, Field: "image", Err: err, Message: "there is no built image", Remedy: "run faasd-sec build"}
	}
	defer img.Close()
	var s sbom.Scanner
	if err := s.Image(img.Image); err != nil {
		return err
	}
	if fn.Bundle != "" {
		if err := s.Dir(filepath.Join(fn.Dir, fn.Bundle)); err != nil {
			return err
		}
	}
	digest, err := img.DigestString()
	if err != nil {
		return err
	}
	repo, _ := splitRef(fn.Image)
	b, err := s.Encode(sbom.Subject{Name: repo, Digest: digest})
	if err != nil {
		return err
	}
	return a.print(b)
}

func (a *app) print(b []byte) error {
	if _, err := a.stdout.Write(b); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// noteDockerfile says that a Dockerfile has no say here, before somebody wonders
// why what is in it is not in the image.
func (a *app) noteDockerfile(fn *stack.Function) {
	dirs := []string{fn.Dir}
	if h := filepath.Join(fn.Dir, fn.Handler); h != fn.Dir {
		dirs = append(dirs, h)
	}
	for _, dir := range dirs {
		for _, name := range []string{"Dockerfile", "Containerfile"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				a.notef("note: %s is not read: what goes into the image of %s is its build section in function.yml", filepath.Join(dir, name), fn.Name.Short())
			}
		}
	}
}
