package container

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/registry"
)

// hubKey is the name under which docker login keeps the credentials of Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// dockerConfig is the part of docker's client configuration that holds credentials, as docker login leaves them.
type dockerConfig struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// registryAuth returns the credentials of this host's user for the registry of an image, as the engine takes them; "" if it has none.
// They are read each time: docker login on the host is all that it takes to change them.
func registryAuth(ctx context.Context, named reference.Named) (string, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil { // a service without a home has no credentials.
			return "", nil
		}
		dir = filepath.Join(home, ".docker")
	}
	path := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("credentials of registries: %w", err)
	}
	var config dockerConfig
	if err := json.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("credentials of registries in %s: %w", path, err)
	}
	host := reference.Domain(named)
	key := host
	if host == "docker.io" {
		key = hubKey
	}
	auth := registry.AuthConfig{ServerAddress: host}
	helper := config.CredsStore
	if config.CredHelpers[host] != "" {
		helper = config.CredHelpers[host]
	}
	var found bool
	if helper != "" {
		found, err = askHelper(ctx, helper, key, &auth)
	} else {
		found, err = config.stored(key, &auth)
	}
	if err != nil {
		return "", fmt.Errorf("credentials of registry %s: %w", host, err)
	}
	if !found {
		return "", nil
	}
	return registry.EncodeAuthConfig(auth)
}

func (c dockerConfig) stored(key string, auth *registry.AuthConfig) (bool, error) {
	entry, ok := c.Auths[key]
	if !ok {
		entry, ok = c.Auths["https://"+key]
	}
	if !ok {
		return false, nil
	}
	if entry.IdentityToken != "" {
		auth.IdentityToken = entry.IdentityToken
		return true, nil
	}
	plain, err := base64.StdEncoding.DecodeString(entry.Auth)
	if err != nil {
		return false, err
	}
	user, password, ok := strings.Cut(string(plain), ":")
	if !ok {
		return false, errors.New("the entry is not user:password in base64")
	}
	auth.Username, auth.Password = user, password
	return true, nil
}

// askHelper runs docker's own credential helper.
func askHelper(ctx context.Context, helper, key string, auth *registry.AuthConfig) (bool, error) {
	if strings.ContainsAny(helper, "/\\") {
		return false, fmt.Errorf("credential helper %q is no name", helper)
	}
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(key)
	out, err := cmd.Output()
	if err != nil {
		if bytes.Contains(out, []byte("credentials not found")) {
			return false, nil
		}
		return false, fmt.Errorf("docker-credential-%s: %w", helper, err)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out, &got); err != nil {
		return false, fmt.Errorf("docker-credential-%s: %w", helper, err)
	}
	if got.Username == "<token>" {
		auth.IdentityToken = got.Secret
	} else {
		auth.Username, auth.Password = got.Username, got.Secret
	}
	return true, nil
}
