package stack

import (
	"fmt"
	"regexp"
	"strings"
)

// Bounds on what a small text may grow to. Aliases, variables and extends all repeat what stands elsewhere once.
const (
	// maxDepth of nesting.
	maxDepth = 64
	// maxNodes of a file, aliases counted as often as they are used.
	maxNodes = 100_000
	// maxSubstitution bounds variables times length of the text that they stand in: nested defaults are parsed anew at each level.
	maxSubstitution = 16 << 20
	// maxExpandedBytes of a file with aliases and variables put in.
	maxExpandedBytes = 8 << 20
	// maxExtendedBytes of what services take over from others by extends.
	maxExtendedBytes = 128 << 20
)

// substitutionCost is what interpolating a text costs.
func substitutionCost(text string) int { return strings.Count(text, "${") * len(text) }

// references finds the variables in a text, with or without braces.
func references() *regexp.Regexp { return regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`) }

// expandedSize is at least how many bytes a decoded value has once variables are put in. It stops counting beyond the limit.
func expandedSize(value any, env map[string]string, refs *regexp.Regexp, limit int) int {
	size := 1
	switch v := value.(type) {
	case string:
		size += len(v)
		if strings.Contains(v, "$") {
			for _, m := range refs.FindAllStringSubmatch(v, -1) {
				size += len(env[m[1]])
			}
		}
	case map[string]any:
		for k, e := range v {
			if size += len(k) + expandedSize(e, env, refs, limit); size > limit {
				return size
			}
		}
	case []any:
		for _, e := range v {
			if size += expandedSize(e, env, refs, limit); size > limit {
				return size
			}
		}
	}
	return size
}

// checkVariables bounds the work and the outcome of reading a file of variables, whose values may refer to earlier ones and so double
// from line to line. Sizes holds the bytes of the variables that are known before, and takes up those of the file.
func checkVariables(name string, content []byte, sizes map[string]int) error {
	if substitutionCost(string(content)) > maxSubstitution {
		return fmt.Errorf("%s: too many variables in a long file", name)
	}
	refs := references()
	assignment := regexp.MustCompile(`^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_.\-\[\]]*)\s*[=:]`)
	current, total := "", 0
	for line := range strings.Lines(string(content)) {
		size := len(line)
		for _, m := range refs.FindAllStringSubmatch(line, -1) {
			size += sizes[m[1]]
		}
		if m := assignment.FindStringSubmatch(line); m != nil {
			current = m[1]
			sizes[current] = max(sizes[current], size) // inside a quoted text the line may not be an assignment.
		} else {
			sizes[current] += size
		}
		if total += size; total > maxExpandedBytes {
			return fmt.Errorf("%s: its variables grow to more than %s when they are put into each other", name, formatBytes(maxExpandedBytes))
		}
	}
	return nil
}

// sizesOf returns the bytes of variables.
func sizesOf(env map[string]string) map[string]int {
	sizes := make(map[string]int, len(env))
	for name, value := range env {
		sizes[name] = len(value)
	}
	return sizes
}
