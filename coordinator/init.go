package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/spheroseg/muster/coordinator/internal/api"
	"github.com/spheroseg/muster/coordinator/internal/cluster"
	"github.com/spheroseg/muster/coordinator/internal/state"
	"github.com/spheroseg/muster/internal/durable"
	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/mtls"
	"github.com/spheroseg/muster/internal/rpcerr"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
	raftv1 "github.com/spheroseg/muster/proto/gen/muster/raft/v1"
)

const (
	adminName      = "admin"
	adminTokenLife = 24 * time.Hour
	joinTime       = 30 * time.Second
	tokenFileLimit = 4096
)

// InitOptions of a new cluster.
type InitOptions struct {
	Settings
	// DataDir of the first coordinator.
	DataDir string
	// ClusterName that operators see.
	ClusterName string
	Logger      *slog.Logger
}

// Init founds a cluster: its certificate authorities, its first coordinator, and a token with which the first administrator logs in, which it
// returns. It does not start the coordinator.
func Init(ctx context.Context, o InitOptions) (adminToken string, err error) {
	if err := identity.ValidName(o.ClusterName); err != nil {
		return "", fmt.Errorf("--cluster: %w", err)
	}
	if err := o.validate(); err != nil {
		return "", err
	}
	if err := prepareDir(o.DataDir); err != nil {
		return "", err
	}
	suffix := make([]byte, 4)
	if _, err := rand.Read(suffix); err != nil {
		return "", err
	}
	settings, now := o.Settings, time.Now()
	settings.ClusterID = clusterID(o.ClusterName, hex.EncodeToString(suffix))
	authority, err := identity.NewAuthority(settings.ClusterID, now)
	if err != nil {
		return "", err
	}
	id := identity.ID{Cluster: settings.ClusterID, Role: accessv1.Role_ROLE_COORDINATOR, Name: settings.Name}
	certificate, err := issueFirst(o.DataDir, authority, id, settings.Advertise, now)
	if err != nil {
		return "", err
	}
	token, err := identity.NewToken(authority.GetRoot().GetCertificate())
	if err != nil {
		return "", err
	}
	key, err := newUnlockKey(filepath.Join(o.DataDir, unlockKeyFile))
	if err != nil {
		return "", err
	}
	err = cluster.Bootstrap(ctx, cluster.Options{
		ID: settings.Name, Address: settings.Advertise, ClusterID: settings.ClusterID, DataDir: o.DataDir, SealKey: key, FSM: state.New(), Logger: o.Logger,
	}, &raftv1.Command{
		Version: state.CommandVersion, Now: timestamppb.New(now), Actor: id.String(),
		Op: &raftv1.Command_Bootstrap{Bootstrap: &raftv1.Bootstrap{
			ClusterId: settings.ClusterID, ClusterName: o.ClusterName, Authority: authority,
			Identity: &raftv1.Identity{
				Id: id.String(), Role: id.Role, Name: id.Name, Address: settings.Advertise, Serial: certificate.Serial,
				ExpiresAt: timestamppb.New(certificate.NotAfter),
			},
			Token: &raftv1.Token{
				Id: token.ID, SecretHash: token.SecretHash(), Role: accessv1.Role_ROLE_ADMIN, Name: adminName,
				ExpiresAt: timestamppb.New(now.Add(adminTokenLife)), CreatedBy: id.String(),
			},
		}},
	})
	if err != nil {
		return "", err
	}
	return token.String(), saveSettings(o.DataDir, settings)
}

// clusterID is unique, and fits into a host name of the trust domain.
func clusterID(name, suffix string) string {
	const most = 40
	if len(name) > most {
		name = strings.TrimRight(name[:most], "-")
	}
	return name + "-" + suffix
}

func issueFirst(dir string, authority *raftv1.Authority, id identity.ID, advertise string, now time.Time) (identity.Certificate, error) {
	key, csr, err := identity.NewRequest()
	if err != nil {
		return identity.Certificate{}, err
	}
	certificate, err := identity.Issue(authority, id, csr, now, api.CertificateLife, api.CertificateHosts(advertise)...)
	if err != nil {
		return identity.Certificate{}, err
	}
	return certificate, identity.SaveCredentials(dir, key, certificate.Chain, [][]byte{authority.GetRoot().GetCertificate()})
}

// JoinOptions of a further coordinator.
type JoinOptions struct {
	Settings
	// DataDir of the coordinator.
	DataDir string
	// Coordinator that runs, as host:port.
	Coordinator string
	// Token of `musterctl operator raft token`.
	Token string
}

// Join gets an identity for a further coordinator. It does not start it; once started, the leader takes it into the raft cluster, and gives it a
// vote when it has caught up.
func Join(ctx context.Context, o JoinOptions) error {
	if err := o.validate(); err != nil {
		return err
	}
	token, err := identity.ParseToken(strings.TrimSpace(o.Token))
	if err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(o.Coordinator); err != nil {
		return fmt.Errorf("--coordinator %q is no host:port: %w", o.Coordinator, err)
	}
	if err := prepareDir(o.DataDir); err != nil {
		return err
	}
	key, csr, err := identity.NewRequest()
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///"+o.Coordinator, grpc.WithTransportCredentials(credentials.NewTLS(mtls.Pinned(token.Pin, mtls.ALPNgRPC))))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	response, err := coordinatorv1.NewEnrollServiceClient(conn).Join(ctx, &coordinatorv1.JoinRequest{
		TokenId: token.ID, TokenSecret: token.Secret, Csr: csr, Name: o.Name, Address: o.Advertise,
	}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("join at %s: %s", o.Coordinator, rpcerr.Message(err))
	}
	if err := identity.SaveCredentials(o.DataDir, key, response.GetCertificateChain(), response.GetCaBundle()); err != nil {
		return err
	}
	if _, err := newUnlockKey(filepath.Join(o.DataDir, unlockKeyFile)); err != nil {
		return err
	}
	settings := o.Settings
	settings.ClusterID = response.GetClusterId()
	return saveSettings(o.DataDir, settings)
}

// ReadToken reads a join token from a file that others cannot read, or from standard input ("-"). It never comes from the command line, where every
// process of the machine could see it.
func ReadToken(file string, stdin io.Reader) (string, error) {
	if file == "-" {
		raw, err := io.ReadAll(io.LimitReader(stdin, tokenFileLimit))
		return strings.TrimSpace(string(raw)), err
	}
	if file == "" {
		return "", errors.New("--token-file is empty: give the file that holds the token, or - for standard input")
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("the token: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("the token: %w", err)
	}
	// A pipe is between two processes, whatever its mode says: `--token-file <(…)`.
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return "", fmt.Errorf("the token file %s is readable by others (mode %#o): run `chmod 600 %s`, and make a new token if others had access",
			file, mode.Perm(), file)
	}
	raw, err := io.ReadAll(io.LimitReader(f, tokenFileLimit))
	if err != nil {
		return "", fmt.Errorf("the token: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

// WriteToken writes a join token into a file that only its owner can read, also if the file was there with another mode.
func WriteToken(file, token string) error {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() { // a pipe or a terminal is written to, not replaced
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("the token: %w", err)
		}
		_, err = fmt.Fprintln(f, token)
		return errors.Join(err, f.Close())
	}
	if err := durable.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		return fmt.Errorf("the token: %w", err)
	}
	return nil
}
