package identity_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
)

func TestCredentialsOnDisk(t *testing.T) {
	c := identitytest.New(t, "prod")
	dir := filepath.Join(t.TempDir(), "identity")
	if _, err := identity.LoadCredentials(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before joining: %v, want fs.ErrNotExist", err)
	}
	for _, name := range []string{"h7", "h8"} { // the second time over the first.
		key, chain := c.Forge(t, c.Authority.GetAgent(), "spiffe://agent.prod.muster/"+name, nil)
		if err := identity.SaveCredentials(dir, key, chain, [][]byte{c.Authority.GetRoot().GetCertificate()}); err != nil {
			t.Fatal(err)
		}
		got, err := identity.LoadCredentials(dir)
		if err != nil {
			t.Fatal(err)
		}
		if want := (identity.ID{Cluster: "prod", Role: agent, Name: name}); got.ID() != want {
			t.Errorf("ID = %v, want %v", got.ID(), want)
		}
		if len(got.Roots()) != 1 || len(got.Certificate().Certificate) != 2 || !key.Equal(got.Certificate().PrivateKey) {
			t.Errorf("loaded %d roots, a chain of %d, or another key", len(got.Roots()), len(got.Certificate().Certificate))
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("the directory has %v, %v, want three files", entries, err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, identity.KeyFile): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, want)
		}
	}
}

func TestLoadCredentialsRefuses(t *testing.T) {
	c := identitytest.New(t, "prod")
	roots := [][]byte{c.Authority.GetRoot().GetCertificate()}
	elsewhere := t.TempDir()
	key, chain := c.Forge(t, c.Authority.GetAgent(), "spiffe://agent.prod.muster/h8", nil)
	if err := identity.SaveCredentials(elsewhere, key, chain, roots); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"key readable by all":   {func(d string) error { return os.Chmod(filepath.Join(d, identity.KeyFile), 0o604) }, "chmod 600"},
		"key readable by group": {func(d string) error { return os.Chmod(filepath.Join(d, identity.KeyFile), 0o640) }, "chmod 600"},
		"key of another":        {func(d string) error { return copyFile(elsewhere, d, identity.KeyFile) }, "does not belong"},
		"key missing":           {func(d string) error { return os.Remove(filepath.Join(d, identity.KeyFile)) }, "no such file"},
		"chain is empty":        {func(d string) error { return os.Truncate(filepath.Join(d, identity.ChainFile), 0) }, "holds no"},
		"chain where key belongs": {func(d string) error {
			data, err := os.ReadFile(filepath.Join(d, identity.ChainFile))
			return errors.Join(err, os.WriteFile(filepath.Join(d, identity.KeyFile), data, 0o600))
		}, "PRIVATE KEY"},
		"root of another cluster": {func(d string) error {
			k, ch := key, chain
			foreign := identitytest.New(t, "prod")
			if err := identity.SaveCredentials(t.TempDir(), k, ch, [][]byte{foreign.Authority.GetRoot().GetCertificate()}); err == nil {
				return errors.New("SaveCredentials took a root that did not sign the chain")
			}
			other := t.TempDir()
			k, ch = foreign.Forge(t, foreign.Authority.GetAgent(), "spiffe://agent.prod.muster/h8", nil)
			if err := identity.SaveCredentials(other, k, ch, [][]byte{foreign.Authority.GetRoot().GetCertificate()}); err != nil {
				return err
			}
			return copyFile(other, d, identity.RootsFile)
		}, "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			key, chain := c.Forge(t, c.Authority.GetAgent(), "spiffe://agent.prod.muster/h7", nil)
			if err := identity.SaveCredentials(dir, key, chain, roots); err != nil {
				t.Fatal(err)
			}
			if err := tc.spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := identity.LoadCredentials(dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("LoadCredentials: %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestExpiredCredentialsLoad(t *testing.T) {
	c := identitytest.New(t, "prod") // a program must be able to say when its certificate ended, so loading is not where it is refused.
	creds := c.CredentialsAt(t, agent, "h7", time.Now().Add(-2*time.Minute), time.Minute)
	if !creds.NotAfter().Before(time.Now()) {
		t.Errorf("NotAfter = %v is to come", creds.NotAfter())
	}
}

func copyFile(from, to, name string) error {
	data, err := os.ReadFile(filepath.Join(from, name))
	return errors.Join(err, os.WriteFile(filepath.Join(to, name), data, 0o600))
}
