package stack

import (
	"regexp"
	"strings"
)

// hidden stands for a value that is a secret by its name. That two such values differ still shows.
const hidden = "•••"

// secretWords mark names of secrets.
const secretWords = `pass|secret|token|key|credential`

// redact returns what may be shown of the value at path; empty if there is none.
func redact(path string, values map[string]string) string {
	value, ok := values[path]
	if !ok {
		return ""
	}
	if name, ok := strings.CutPrefix(path, "env."); ok && looksSecret(name) {
		return hidden
	}
	return redactText(value)
}

// looksSecret tells variables that carry secrets by their names. A _FILE variable names a file, and shows.
func looksSecret(name string) bool {
	lower := strings.ToLower(name)
	if strings.HasSuffix(lower, "_file") {
		return false
	}
	for word := range strings.SplitSeq(secretWords, "|") {
		if strings.Contains(lower, word) {
			return true
		}
	}
	return false
}

// redactText hides passwords inside longer values: user:password@ in URLs, --password VALUE and PASSWORD=VALUE in commands.
func redactText(value string) string {
	value = regexp.MustCompile(`(://[^:@/\s]*:)[^@/\s]+@`).ReplaceAllString(value, "${1}"+hidden+"@")
	// A name of a secret, then = or space, then the value; values that are file paths or shell substitutions show.
	assigned := regexp.MustCompile(`(?i)(\b\w*(?:` + secretWords + `)[\w-]*=|--?[\w-]*(?:` + secretWords + `)[\w-]*[= ]+["']?|redis-cli (?:\S+ )*?-a ["']?)([^\s"'/$][^\s"']*)`)
	return assigned.ReplaceAllString(value, "${1}"+hidden)
}
