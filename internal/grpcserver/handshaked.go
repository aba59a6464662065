package grpcserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
)

// Handshaked returns the credentials of connections whose TLS handshake our own code has done: those that a port accepted and told apart by ALPN,
// and those that an agent dialled. Either end of gRPC may be either end of TLS. Any other connection is refused.
func Handshaked() credentials.TransportCredentials { return handshaked{} }

type handshaked struct{}

// ClientHandshake passes on a connection over which this end calls.
func (handshaked) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := adopt(conn)
	return conn, info, err
}

// ServerHandshake passes on a connection over which this end serves.
func (handshaked) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info, err := adopt(conn)
	if err != nil {
		return nil, nil, err
	}
	served := peerInfo{TLSInfo: info}
	served.caller, served.err = CallerOf(info.State)
	return conn, served, nil
}

// Info names the protocol.
func (handshaked) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone returns the same credentials, which have no state.
func (h handshaked) Clone() credentials.TransportCredentials { return h }

// OverrideServerName is not possible: nobody is checked by server name.
func (handshaked) OverrideServerName(string) error {
	return errors.New("the handshake is done: there is no server name to override")
}

func adopt(conn net.Conn) (credentials.TLSInfo, error) {
	c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }) // *tls.Conn, or what embeds one.
	if !ok {
		return credentials.TLSInfo{}, fmt.Errorf("connection %T is not TLS", conn)
	}
	cs := c.ConnectionState()
	if !cs.HandshakeComplete {
		return credentials.TLSInfo{}, errors.New("the TLS handshake of the connection is not done")
	}
	return credentials.TLSInfo{State: cs, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// peerInfo is the other end of a connection that is served, read from its certificate once and not at every call.
type peerInfo struct {
	credentials.TLSInfo

	caller Caller
	err    error // why it is nobody
}
