package identity_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/identity/identitytest"
)

func TestToken(t *testing.T) {
	root := identitytest.New(t, "prod").Authority.GetRoot().GetCertificate()
	tok, err := identity.NewToken(root)
	if err != nil {
		t.Fatal(err)
	}
	text := tok.String()
	got, err := identity.ParseToken(text)
	if err != nil || got.ID != tok.ID || !bytes.Equal(got.Secret, tok.Secret) || got.Pin != tok.Pin {
		t.Errorf("ParseToken(%q) = %+v, %v, want %+v", text, got, err, tok)
	}
	if len(text) != 123 {
		t.Errorf("the token has %d characters, its error message says 123", len(text))
	}
	if want := identity.Pin(parse(t, [][]byte{root})[0]); got.Pin != want {
		t.Errorf("pin %x, want that of the root, %x", got.Pin, want)
	}
	if want := sha256.Sum256(tok.Secret); !bytes.Equal(tok.SecretHash(), want[:]) {
		t.Errorf("hash %x, want %x", tok.SecretHash(), want)
	}
	if again, err := identity.NewToken(root); err != nil || again.ID == tok.ID || bytes.Equal(again.Secret, tok.Secret) {
		t.Errorf("a second token %v, %v is the first one", again, err)
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "token", tok)
	if secret := strings.Split(text, ".")[2]; strings.Contains(log.String(), secret) || !strings.Contains(log.String(), tok.ID) {
		t.Errorf("logged %s", log.String())
	}
}

func TestParseTokenRefuses(t *testing.T) {
	tok, err := identity.NewToken(identitytest.New(t, "prod").Authority.GetRoot().GetCertificate())
	if err != nil {
		t.Fatal(err)
	}
	good := tok.String()
	p := strings.Split(good, ".")
	for name, text := range map[string]string{
		"empty":                "",
		"words":                "not a token",
		"white space":          good + "\n",
		"upper case":           strings.ToUpper(good),
		"upper case secret":    strings.Join([]string{p[0], p[1], strings.ToUpper(p[2]), p[3]}, "."),
		"upper case id":        strings.Join([]string{p[0], "ABCDEFABCDEF", p[2], p[3]}, "."),
		"other version":        "mjt2" + strings.TrimPrefix(good, "mjt1"),
		"short id":             strings.Join([]string{p[0], p[1][2:], p[2], p[3]}, "."),
		"id not hexadecimal":   strings.Join([]string{p[0], "zz" + p[1][2:], p[2], p[3]}, "."),
		"no pin":               strings.Join(p[:3], "."),
		"short secret":         strings.Join([]string{p[0], p[1], p[2][:50], p[3]}, "."),
		"long secret":          strings.Join([]string{p[0], p[1], p[2] + "aa", p[3]}, "."),
		"padded secret":        strings.Join([]string{p[0], p[1], p[2] + "====", p[3]}, "."),
		"line break in secret": strings.Join([]string{p[0], p[1], p[2][:10] + "\n" + p[2][10:], p[3]}, "."),
		"loose bits":           good[:len(good)-1] + "b", // the last of 52 digits has one bit: a or q.
		"five parts":           good + "." + p[3],
	} {
		t.Run(name, func(t *testing.T) {
			_, err := identity.ParseToken(text)
			if !errors.Is(err, identity.ErrToken) {
				t.Fatalf("ParseToken(%q): %v", text, err)
			}
			if strings.Contains(err.Error(), p[2]) {
				t.Errorf("the error holds the secret: %v", err)
			}
		})
	}
}

func FuzzParseToken(f *testing.F) {
	tok := identity.Token{ID: "0123456789ab", Secret: bytes.Repeat([]byte{7}, 32)}
	f.Add(tok.String())
	f.Add("mjt1...")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := identity.ParseToken(text); err == nil && got.String() != text {
			t.Errorf("%q and %q are the same token", text, got.String())
		}
	})
}
