package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/spheroseg/muster/deploy/fleet"
)

const (
	etcdMembers = 3
	etcdLimit   = 30 * time.Second
)

// etcd is a cluster of it on loopback.
type etcd struct {
	leader string // address for clients
	tls    *tls.Config
}

// startEtcd starts the members, with certificates for clients and members as Muster has them, and everything else as it comes.
func startEtcd(ctx context.Context, f *fleet.Fleet) (*etcd, error) {
	program, err := f.Etcd(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(f.Dir(), "etcd")
	config, err := etcdCertificates(dir)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2 * etcdMembers)
	if err != nil {
		return nil, err
	}
	var members, clients []string
	for i := range etcdMembers {
		members = append(members, fmt.Sprintf("etcd%d=https://%s", i, ports[2*i]))
		clients = append(clients, ports[2*i+1])
	}
	for i := range etcdMembers {
		name := fmt.Sprintf("etcd%d", i)
		peer, client := "https://"+ports[2*i], "https://"+ports[2*i+1]
		args := []string{
			"--name", name, "--data-dir", filepath.Join(dir, name), "--log-level", "warn",
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--listen-client-urls", client, "--advertise-client-urls", client,
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", "new",
			"--quota-backend-bytes", "8589934592", // more than the benchmark writes
		}
		for _, kind := range []string{"", "peer-"} {
			args = append(args, "--"+kind+"cert-file", filepath.Join(dir, "leaf.crt"), "--"+kind+"key-file", filepath.Join(dir, "leaf.key"),
				"--"+kind+"trusted-ca-file", filepath.Join(dir, "ca.crt"), "--"+kind+"client-cert-auth")
		}
		if _, err := f.Start(fleet.Command{Name: name, Path: program, Args: args}); err != nil {
			return nil, err
		}
	}
	e := &etcd{tls: config}
	return e, e.findLeader(ctx, clients)
}

// findLeader waits until a member says that it leads.
func (e *etcd) findLeader(ctx context.Context, clients []string) error {
	ctx, cancel := context.WithTimeout(ctx, etcdLimit)
	defer cancel()
	return fleet.Poll(ctx, 100*time.Millisecond, "a leader of etcd", func() (bool, error) {
		for _, address := range clients {
			leads, err := e.leads(ctx, address)
			if err != nil {
				return false, nil //nolint:nilerr // It may be about to start; the time is limited.
			}
			if leads {
				e.leader = address
				return true, nil
			}
		}
		return false, nil
	})
}

// leads asks a member for its status: field 1 of the header and of the answer are those of etcdserverpb.StatusResponse.
func (e *etcd) leads(ctx context.Context, address string) (_ bool, err error) {
	cc, err := grpc.NewClient("passthrough:///"+address, e.dialOptions()...)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, cc.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var in, answer []byte
	if err := cc.Invoke(ctx, "/etcdserverpb.Maintenance/Status", &in, &answer); err != nil {
		return false, err
	}
	const header, memberID, leader = 1, 2, 4
	_, head := field(answer, header)
	self, _ := field(head, memberID)
	led, _ := field(answer, leader)
	return self != 0 && self == led, nil
}

// field returns a field of a message: its number or its bytes.
func field(message []byte, number protowire.Number) (uint64, []byte) {
	for len(message) > 0 {
		num, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return 0, nil
		}
		message = message[n:]
		if num == number {
			switch kind {
			case protowire.VarintType:
				v, _ := protowire.ConsumeVarint(message)
				return v, nil
			case protowire.BytesType:
				b, _ := protowire.ConsumeBytes(message)
				return 0, b
			}
		}
		if n = protowire.ConsumeFieldValue(num, kind, message); n < 0 {
			return 0, nil
		}
		message = message[n:]
	}
	return 0, nil
}

func (e *etcd) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(e.tls)),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})),
	}
}

// put writes a value: an etcdserverpb.PutRequest made by hand, so that the product does not depend on etcd's client. It costs less than that client.
func (e *etcd) put(size int) put {
	value := make([]byte, size)
	return func(ctx context.Context, cc *grpc.ClientConn, n uint64) error {
		const key, val = 1, 2
		request := protowire.AppendTag(make([]byte, 0, size+32), key, protowire.BytesType)
		request = protowire.AppendString(request, fmt.Sprintf("key-%d", n%commitKeys))
		request = protowire.AppendTag(request, val, protowire.BytesType)
		request = protowire.AppendBytes(request, value)
		var answer []byte
		return cc.Invoke(ctx, "/etcdserverpb.KV/Put", &request, &answer)
	}
}

// rawCodec passes messages on as they are: *[]byte.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	raw, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("message %T is not raw", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(*raw)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	raw, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("message %T is not raw", v)
	}
	*raw = data.Materialize()
	return nil
}

// etcdCertificates makes an authority and one certificate for all members and the client.
func etcdCertificates(dir string) (*tls.Config, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		return nil, err
	}
	for name, block := range map[string]*pem.Block{
		"ca.crt": {Type: "CERTIFICATE", Bytes: caDER}, "leaf.crt": {Type: "CERTIFICATE", Bytes: leafDER}, "leaf.key": {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "127.0.0.1",
		Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}},
	}, nil
}

// freePorts returns addresses on loopback that were free a moment ago.
func freePorts(n int) (addresses []string, err error) {
	var open []net.Listener // all stay open until the last is found
	defer func() {
		for _, l := range open {
			err = errors.Join(err, l.Close())
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		open, addresses = append(open, l), append(addresses, l.Addr().String())
	}
	return addresses, nil
}
