// What Ollama makes of a template and conversations: JSON on the standard input, the texts as JSON on the standard output.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var asked struct {
		Template      string
		Conversations [][]message
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
		values := map[string]any{"System": strings.Join(told, "\n\n"), "Messages": messages, "Response": ""}
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
