// linear reads a history of concurrent operations, one JSON object a line, and
// says whether it could have happened one operation at a time: puts and gets of
// each key, acquires and releases of each semaphore. The search is porcupine's.
//
// A line: {"client":1, "op":"put|get|acquire|release", "key":"k",
// "value":"v", "revision":7, "found":true, "token":9, "permits":1, "limit":1,
// "call":NS, "return":NS}. Without "return" it is not known whether, or when,
// the operation took effect; such gets and acquires are left out by whoever
// writes the history.
//
// Prints one line per key that could not have happened. Exit status: 0 all
// could, 1 not, 2 bad input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

type operation struct {
	Client   int    `json:"client"`
	Op       string `json:"op"`
	Key      string `json:"key"`
	Value    string `json:"value"`
	Revision uint64 `json:"revision"`
	Found    bool   `json:"found"`
	Token    uint64 `json:"token"`
	Permits  int    `json:"permits"`
	Limit    int    `json:"limit"`
	Call     int64  `json:"call"`
	Return   *int64 `json:"return"`
}

// A key of the log. The revision is exact, or a lower bound after a put whose
// answer was lost.
type register struct {
	present  bool
	value    string
	revision uint64
	exact    bool
}

var registers = porcupine.Model{
	Init: func() interface{} { return register{exact: true} },
	Step: func(state, input, _ interface{}) (bool, interface{}) {
		s, o := state.(register), input.(operation)
		if o.Op == "put" {
			if o.Return == nil {
				return true, register{true, o.Value, s.revision, false}
			}
			return o.Revision > s.revision,
				register{true, o.Value, o.Revision, true}
		}
		if o.Found != s.present || o.Value != s.value {
			return false, s
		}
		if !s.present {
			return true, s
		}
		if s.exact {
			return o.Revision == s.revision, s
		}
		return o.Revision > s.revision,
			register{true, s.value, o.Revision, true}
	},
	DescribeOperation: describe,
}

type grant struct {
	token   uint64
	permits int
}

// The grants of a semaphore, as text so that states can be compared.
type grants struct {
	held string
	last uint64
}

func (g grants) list() []grant {
	var out []grant
	for _, text := range strings.Fields(g.held) {
		var one grant
		fmt.Sscanf(text, "%d/%d", &one.token, &one.permits)
		out = append(out, one)
	}
	return out
}

func (g grants) with(list []grant) grants {
	text := make([]string, len(list))
	for i, one := range list {
		text[i] = fmt.Sprintf("%d/%d", one.token, one.permits)
	}
	g.held = strings.Join(text, " ")
	return g
}

var semaphores = porcupine.Model{
	Init: func() interface{} { return grants{} },
	Step: func(state, input, _ interface{}) (bool, interface{}) {
		s, o := state.(grants), input.(operation)
		list := s.list()
		if o.Op == "release" {
			for i, one := range list {
				if one.token == o.Token {
					rest := append(list[:i:i], list[i+1:]...)
					return true, s.with(rest)
				}
			}
			return false, s
		}
		used := o.Permits
		for _, one := range list {
			used += one.permits
		}
		if used > o.Limit || o.Token <= s.last {
			return false, s
		}
		s.last = o.Token
		return true, s.with(append(list, grant{o.Token, o.Permits}))
	},
	DescribeOperation: describe,
}

func describe(input, _ interface{}) string {
	o := input.(operation)
	return fmt.Sprintf("client %d: %s %q %q revision %d token %d",
		o.Client, o.Op, o.Key, o.Value, o.Revision, o.Token)
}

func read() (map[string][]porcupine.Operation, error) {
	out := map[string][]porcupine.Operation{}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	for line := 1; in.Scan(); line++ {
		o := operation{Permits: 1, Limit: 1}
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return nil, fmt.Errorf("line %d: %v", line, err)
		}
		kind := "log"
		switch o.Op {
		case "put", "get":
		case "acquire", "release":
			kind = "semaphore"
		default:
			return nil, fmt.Errorf("line %d: no such operation %q",
				line, o.Op)
		}
		end := int64(math.MaxInt64)
		if o.Return != nil {
			end = *o.Return
		} else if o.Op == "get" || o.Op == "acquire" {
			return nil, fmt.Errorf("line %d: %s without a return",
				line, o.Op)
		}
		if o.Call > end {
			return nil, fmt.Errorf("line %d: returns before its call", line)
		}
		out[kind+" "+o.Key] = append(out[kind+" "+o.Key],
			porcupine.Operation{ClientId: o.Client, Input: o,
				Call: o.Call, Return: end})
	}
	return out, in.Err()
}

func main() {
	histories, err := read()
	if err != nil {
		fmt.Fprintln(os.Stderr, "linear:", err)
		os.Exit(2)
	}
	keys := make([]string, 0, len(histories))
	for key := range histories {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	status, operations := 0, 0
	for _, key := range keys {
		model := registers
		if strings.HasPrefix(key, "semaphore ") {
			model = semaphores
		}
		operations += len(histories[key])
		result := porcupine.CheckOperationsTimeout(
			model, histories[key], 2*time.Minute)
		if result != porcupine.Ok {
			fmt.Printf("%s: %s\n", key, result)
			status = 1
		}
	}
	fmt.Printf("%d operations on %d keys checked\n", operations, len(keys))
	os.Exit(status)
}
