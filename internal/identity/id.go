// Package identity owns who somebody is: SPIFFE ids, the certificate authorities that sign them, join tokens, and the credentials of a program on its disk.
// How a connection uses them is left to mtls, and what an identity may do to grpcserver.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

// The first labels of the host of a SPIFFE id. Each has an issuing authority of its own, which can sign for no other host.
const (
	hostCoordinator = "coordinator"
	hostAgent       = "agent"
	hostUser        = "user"
)

const (
	idScheme    = "spiffe://"
	trustSuffix = "muster"
	maxName     = 63
)

// ID is an identity. Every certificate of a cluster names exactly one.
type ID struct {
	// Cluster is the cluster's id, which is a valid name.
	Cluster string
	// Role of the identity.
	Role accessv1.Role
	// Name of the host, coordinator, person or program.
	Name string
}

// String returns the SPIFFE id. Parse refuses that of an ID which is not Valid.
func (id ID) String() string {
	if user := userPath(id.Role); user != "" {
		return idScheme + trustHost(hostUser, id.Cluster) + "/" + user + "/" + id.Name
	}
	return idScheme + trustHost(hostOf(id.Role), id.Cluster) + "/" + id.Name
}

// Valid returns an error that names the part of id which cannot be in a certificate.
func (id ID) Valid() error {
	if hostOf(id.Role) == "" {
		return fmt.Errorf("role %s is none that an identity can have", id.Role)
	}
	if err := ValidName(id.Cluster); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return ValidName(id.Name)
}

// Parse reads a SPIFFE id in the one form that String writes.
func Parse(s string) (ID, error) {
	rest, ok := strings.CutPrefix(s, idScheme)
	host, path, found := strings.Cut(rest, "/")
	labels := strings.Split(host, ".")
	if !ok || !found || len(labels) != 3 || labels[2] != trustSuffix {
		return ID{}, fmt.Errorf("identity %q is not of the form spiffe://<role>.<cluster>.muster/<name>", s)
	}
	id := ID{Cluster: labels[1], Name: path}
	switch labels[0] {
	case hostAgent:
		id.Role = accessv1.Role_ROLE_AGENT
	case hostCoordinator:
		id.Role = accessv1.Role_ROLE_COORDINATOR
	case hostUser:
		var user string
		user, id.Name, _ = strings.Cut(path, "/")
		id.Role = userRole(user)
	}
	if err := id.Valid(); err != nil {
		return ID{}, fmt.Errorf("identity %q: %w", s, err)
	}
	return id, nil
}

// FromCertificate returns the identity that a certificate names: its one URI. Host names and addresses beside it are for ordinary TLS
// clients and give no rights. It does not verify the certificate.
func FromCertificate(c *x509.Certificate) (ID, error) {
	if c == nil {
		return ID{}, errors.New("there is no certificate")
	}
	if len(c.URIs) != 1 || len(c.EmailAddresses) != 0 {
		return ID{}, fmt.Errorf("certificate %x must have exactly one URI and no e-mail address", c.SerialNumber)
	}
	return Parse(c.URIs[0].String())
}

// ValidName returns an error unless s can name a cluster or an identity: a lower-case letter or digit, then up to 62 of those and dashes.
func ValidName(s string) error {
	ok := s != "" && len(s) <= maxName && s[0] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if !ok {
		return fmt.Errorf("name %q is not valid: use a-z, 0-9 and dashes, at most %d, not a dash first", s, maxName)
	}
	return nil
}

func trustHost(host, cluster string) string { return host + "." + cluster + "." + trustSuffix }

// hostOf returns the first label of the host for a role, and "" for a role that no identity can have.
func hostOf(r accessv1.Role) string {
	switch r {
	case accessv1.Role_ROLE_AGENT:
		return hostAgent
	case accessv1.Role_ROLE_COORDINATOR:
		return hostCoordinator
	default:
		if userPath(r) != "" {
			return hostUser
		}
		return ""
	}
}

func userPath(r accessv1.Role) string {
	switch r {
	case accessv1.Role_ROLE_VIEWER:
		return "viewer"
	case accessv1.Role_ROLE_OPERATOR:
		return "operator"
	case accessv1.Role_ROLE_ADMIN:
		return "admin"
	case accessv1.Role_ROLE_SERVICE:
		return "service"
	default:
		return ""
	}
}

func userRole(path string) accessv1.Role {
	switch path {
	case "viewer":
		return accessv1.Role_ROLE_VIEWER
	case "operator":
		return accessv1.Role_ROLE_OPERATOR
	case "admin":
		return accessv1.Role_ROLE_ADMIN
	case "service":
		return accessv1.Role_ROLE_SERVICE
	default:
		return accessv1.Role_ROLE_UNSPECIFIED
	}
}
