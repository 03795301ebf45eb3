// A connector in Go, with the standard library alone. It reads one request from stdin, writes one result to stdout and exits.
//
//	go build -o csv . && echo '{"op": "execute", "command": "CsvToRows", "params": {"csv": "a,b\n1,2"}}' | ./csv
package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

type request struct {
	Op      string          `json:"op"`
	Command string          `json:"command"`
	Params  json.RawMessage `json:"params"`
}

type parameter struct {
	ID          string `json:"id"`
	Type        string `json:"type"`
	Required    bool   `json:"required"`
	Description string `json:"description,omitempty"`
	Default     any    `json:"default,omitempty"`
}

type command struct {
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Parameters  []parameter `json:"parameters"`
	Async       bool        `json:"async"`
	run         func(json.RawMessage) (any, error)
}

// failure is an answer with a code that a workflow can act on.
type failure struct {
	Code    string `json:"error_code"`
	Message string `json:"message"`
}

func (f failure) Error() string { return f.Message }

var commands = []command{
	{
		Name:        "CsvToRows",
		Description: "Turns CSV with a header line into a list of objects.",
		Parameters: []parameter{
			{ID: "csv", Type: "str", Required: true, Description: "The CSV text"},
			{ID: "separator", Type: "str", Default: ",", Description: "One character"},
		},
		run: csvToRows,
	},
}

func main() {
	result, err := answer(os.Stdin)
	var told failure
	switch {
	case errors.As(err, &told):
		result = map[string]any{"error": told}
	case err != nil:
		// A fault: what is on stderr and the exit status tell it.
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func answer(stdin io.Reader) (any, error) {
	var asked request
	if err := json.NewDecoder(stdin).Decode(&asked); err != nil {
		return nil, failure{"invalid_request", err.Error()}
	}
	if asked.Op == "describe" {
		return map[string]any{"commands": commands, "auths": []any{}}, nil
	}
	for _, known := range commands {
		if known.Name == asked.Command {
			return known.run(asked.Params)
		}
	}
	return nil, failure{"command_not_found", "there is no command " + asked.Command}
}

func csvToRows(raw json.RawMessage) (any, error) {
	params := struct{ CSV, Separator string }{Separator: ","}
	if err := json.Unmarshal(raw, &params); err != nil {
		return nil, failure{"invalid_parameters", err.Error()}
	}
	separator := []rune(params.Separator)
	if len(separator) != 1 {
		return nil, failure{"invalid_parameters", "separator must be one character"}
	}
	reader := csv.NewReader(strings.NewReader(params.CSV))
	reader.Comma = separator[0]
	lines, err := reader.ReadAll()
	if err != nil {
		return nil, failure{"invalid_csv", err.Error()}
	}
	return map[string]any{"rows": rows(lines)}, nil
}

// rows gives each line the names of the first one.
func rows(lines [][]string) []map[string]string {
	rows := []map[string]string{}
	if len(lines) == 0 {
		return rows
	}
	for _, line := range lines[1:] {
		row := map[string]string{}
		for i, name := range lines[0] {
			row[name] = line[i]
		}
		rows = append(rows, row)
	}
	return rows
}
