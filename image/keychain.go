package image

import (
	"fmt"
	"os"

	"github.com/docker/cli/cli/config/configfile"
	"github.com/google/go-containerregistry/pkg/authn"
)

// AuthFile is a keychain of a file as `docker login` writes it, config.json. It is
// read anew each time, so that credentials can be changed under a running daemon.
// An empty path is a keychain without any.
type AuthFile string

var _ authn.Keychain = AuthFile("")

// dockerHub is how docker's file calls Docker Hub.
const dockerHub = "https://index.docker.io/v1/"

// Resolve implements authn.Keychain.
func (f AuthFile) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if f == "" {
		return authn.Anonymous, nil
	}
	user, secret, token, err := f.credentials(r.RegistryStr())
	if err != nil {
		return nil, err
	}
	if user == "" && secret == "" && token == "" {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: user, Password: secret, IdentityToken: token}), nil
}

// Credentials are those for a registry, HOST[:PORT], as containerd asks for them:
// with an empty user the secret is an identity token. Both are empty where the file
// has none.
func (f AuthFile) Credentials(host string) (user, secret string, err error) {
	if f == "" {
		return "", "", nil
	}
	user, secret, token, err := f.credentials(host)
	if token != "" {
		return "", token, err
	}
	return user, secret, err
}

func (f AuthFile) credentials(host string) (user, secret, token string, err error) {
	file, err := os.Open(string(f))
	if err != nil {
		return "", "", "", fmt.Errorf("registry credentials: %w", err)
	}
	defer file.Close()
	c := configfile.New(string(f))
	if err := c.LoadFromReader(file); err != nil {
		return "", "", "", fmt.Errorf("registry credentials: %s is not a config.json of docker", f)
	}
	switch host {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		host = dockerHub
	}
	a, err := c.GetAuthConfig(host)
	if err != nil {
		return "", "", "", fmt.Errorf("registry credentials: %w", err)
	}
	return a.Username, a.Password, a.IdentityToken, nil
}
