package stack

import (
	"crypto/sha256"
	"encoding/hex"
)

// digest returns the SHA-256 of content in hexadecimal.
func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
