package stack

import (
	"errors"
	"fmt"
	"strings"
)

// maxProblems is how many problems one error tells; the rest are counted.
const maxProblems = 20

// problems makes one error of what was found, one problem a line: a person mends a file in one go.
func problems(found []string) error {
	if len(found) == 0 {
		return nil
	}
	if len(found) > maxProblems {
		more := len(found) - maxProblems
		found = append(found[:maxProblems:maxProblems], fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(found, "\n"))
}
