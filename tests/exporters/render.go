// What Ollama makes of a template and conversations: JSON on the standard input, the texts as JSON on the standard output.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

// raw is JSON that a template prints, as Ollama's lists of tools and arguments are.
type raw struct{ json.RawMessage }

func (r raw) String() string { return string(r.RawMessage) }

type call struct {
	Function struct {
		Name      string
		Arguments raw
	}
}

type message struct {
	Role, Content string
	ToolCalls     []call
}

func main() {
	var asked struct {
		Template      string
		Conversations [][]message
		Tools         []raw
	}
	check(json.NewDecoder(os.Stdin).Decode(&asked))
	tmpl, err := template.New("").Option("missingkey=zero").Parse(asked.Template)
	check(err)
	texts := []string{}
	for _, messages := range asked.Conversations {
		var told []string
		for _, m := range messages {
			if m.Role == "system" {
				told = append(told, m.Content)
			}
		}
		var text strings.Builder
		values := map[string]any{"System": strings.Join(told, "\n\n"), "Messages": messages, "Tools": asked.Tools, "Response": ""}
		check(tmpl.Execute(&text, values))
		texts = append(texts, text.String())
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
