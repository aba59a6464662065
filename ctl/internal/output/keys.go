package output

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Pairs returns a map as k=v,k=v in order of its keys.
func Pairs(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		if m[k] == "" {
			parts = append(parts, k)
			continue
		}
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}
