package source

import (
	"regexp"
	"strings"
)

const variableName = `[A-Za-z_][A-Za-z0-9_]*`

// variables returns the names that a text uses as $NAME or ${NAME…}, inside of defaults as well. $$ stands for a dollar sign.
func variables(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`\$(?:\$|\{(`+variableName+`)|(`+variableName+`))`).FindAllStringSubmatch(text, -1) {
		if name := m[1] + m[2]; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// interpolate replaces the variables of a text as compose does. It serves to find files, so what is wrong is left as it is:
// the coordinator says what is wrong with it.
func interpolate(text string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '$' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		if text[i+1] == '$' {
			b.WriteByte('$')
			i++
			continue
		}
		if text[i+1] == '{' {
			end := closing(text, i+2)
			if end < 0 {
				b.WriteString(text[i:])
				break
			}
			b.WriteString(expand(text[i+2:end], lookup))
			i = end
			continue
		}
		name := regexp.MustCompile(`^` + variableName).FindString(text[i+1:])
		if name == "" {
			b.WriteByte('$')
			continue
		}
		value, _ := lookup(name)
		b.WriteString(value)
		i += len(name)
	}
	return b.String()
}

// closing returns the place of the brace that ends the one before start, or -1.
func closing(text string, start int) int {
	depth := 1
	for i := start; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], "${"):
			depth++
			i++
		case text[i] == '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// expand returns the value of what is between ${ and }.
func expand(inside string, lookup func(string) (string, bool)) string {
	name := regexp.MustCompile(`^` + variableName).FindString(inside)
	value, set := lookup(name)
	rest := inside[len(name):]
	operator, word := "", ""
	for _, op := range []string{":-", ":+", ":?", "-", "+", "?"} {
		if after, ok := strings.CutPrefix(rest, op); ok {
			operator, word = op, after
			break
		}
	}
	if strings.HasPrefix(operator, ":") {
		set = set && value != ""
		operator = operator[1:]
	}
	switch {
	case operator == "-" && !set, operator == "+" && set:
		return interpolate(word, lookup)
	case operator == "+":
		return ""
	}
	return value
}

// parseEnv reads NAME=value lines into a map: comments, export, quotes, and values over several lines inside of quotes, as
// compose reads .env.
func parseEnv(text string, into map[string]string, lookup func(string) (string, bool)) {
	see := func(name string) (string, bool) {
		if v, ok := lookup(name); ok {
			return v, true
		}
		v, ok := into[name]
		return v, ok
	}
	text = strings.ReplaceAll(text, "\r\n", "\n")
	for text != "" {
		line, rest, _ := strings.Cut(text, "\n")
		text = rest
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if after, ok := strings.CutPrefix(line, "export "); ok {
			line = strings.TrimSpace(after)
		}
		name, value, ok := strings.Cut(line, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			continue
		}
		value = strings.TrimSpace(value)
		if value == "" || (value[0] != '"' && value[0] != '\'') {
			value, _, _ = strings.Cut(value, " #")
			into[name] = interpolate(strings.TrimSpace(value), see)
			continue
		}
		quote := value[0]
		for unquoted(value, quote) < 0 && text != "" {
			line, rest, _ = strings.Cut(text, "\n")
			value, text = value+"\n"+line, rest
		}
		end := unquoted(value, quote)
		if end < 0 {
			continue
		}
		value = value[1:end]
		if quote == '"' {
			value = interpolate(strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\t`, "\t", `\"`, `"`, `\\`, `\`).Replace(value), see)
		}
		into[name] = value
	}
}

// unquoted returns the place of the quote that ends a value which begins with one, or -1.
func unquoted(value string, quote byte) int {
	for i := 1; i < len(value); i++ {
		switch {
		case value[i] == '\\' && quote == '"':
			i++
		case value[i] == quote:
			return i
		}
	}
	return -1
}
