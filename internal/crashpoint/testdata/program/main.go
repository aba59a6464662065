// Command program passes one crash point five times and says so before each.
package main

import (
	"fmt"

	"github.com/spheroseg/muster/internal/crashpoint"
)

func main() {
	for range 5 {
		fmt.Println("pass")
		crashpoint.Hit(crashpoint.LogBefore)
	}
}
