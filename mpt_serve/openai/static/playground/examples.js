// Prompts to begin with, for six uses. `chat`: a message; `text`: a text that a model without chat continues.

import { byId, button, element } from "./dom.js";

const EXAMPLES = [
  {
    use: "Understanding",
    prompts: [
      { chat: "Is this review positive or negative? The soup was cold and the waiter was rude.", text: "Review: I loved the soup.\nSentiment: positive\n\nReview: The soup was cold and the waiter was rude.\nSentiment:" },
      { chat: "Extract name and city as JSON: Anna is a 34 year old teacher from Lisbon.", text: "Text: Ben lives in Oslo.\nJSON: {\"name\": \"Ben\", \"city\": \"Oslo\"}\n\nText: Anna is a 34 year old teacher from Lisbon.\nJSON:" },
    ],
  },
  {
    use: "Generation",
    prompts: [
      { chat: "Tell me a story about a fox.", text: "Once upon a time there was a fox who" },
      { chat: "Write an email to Maria about the meeting.", text: "Dear Maria,\n\nI am writing to you about the meeting." },
    ],
  },
  {
    use: "Translation",
    prompts: [
      { chat: "Translate to French: Good morning!", text: "English: Thank you.\nFrench: Merci.\n\nEnglish: Good morning!\nFrench:" },
      { chat: "How do you say \"Where is the station?\" in German?", text: "English: How are you?\nGerman: Wie geht es dir?\n\nEnglish: Where is the station?\nGerman:" },
    ],
  },
  {
    use: "Summary",
    prompts: [
      { chat: "Summarize this in one sentence: On Monday, Clara opened a new bakery in Porto. It took 12 weeks of hard work. The mayor thanked everyone who helped. There was music and free coffee.", text: "On Monday, Clara opened a new bakery in Porto. It took 12 weeks of hard work. The mayor thanked everyone who helped.\n\nIn one sentence:" },
    ],
  },
  {
    use: "Question answering",
    prompts: [
      { chat: "What is the capital of France?", text: "Question: What is the capital of Spain?\nReply: Madrid\n\nQuestion: What is the capital of France?\nReply:" },
      { chat: "Text: Last Friday Tom found a lost ring in Bergen. More than 20 people were there.\nQuestion: Where did it happen?", text: "Last Friday Tom found a lost ring in Bergen. More than 20 people were there.\n\nQuestion: Where did it happen?\nReply:" },
    ],
  },
  {
    use: "Code",
    prompts: [
      { chat: "Write a Python function that checks if a string is a palindrome.", text: "def is_palindrome(text: str) -> bool:\n    \"\"\"Return whether a text reads the same backwards.\"\"\"\n" },
      { chat: "How do I count the words in a text in Python?", text: "# Count the words in a text\ndef count_words(text):\n" },
    ],
  },
];

/** Return the list of examples as an element. form: `chat` or `text`; onChoose: called with the chosen prompt. */
export function exampleList(form, onChoose) {
  const groups = EXAMPLES.map(({ use, prompts }) => {
    const items = prompts.map((prompt) => element("li", {}, example(prompt[form], onChoose)));
    return element("section", { class: "example-group" }, element("h3", { text: use }), element("ul", {}, ...items));
  });
  return element("div", { class: "example-grid" }, ...groups);
}

function example(text, onChoose) {
  const made = button("", () => onChoose(text), { class: "example" });
  made.append(element("span", { text }));
  return made;
}

/** Let the user choose an example in a dialog. */
export function chooseExample(form, onChoose) {
  const dialog = byId("examples-dialog");
  byId("examples").replaceChildren(
    exampleList(form, (text) => {
      dialog.close();
      onChoose(text);
    }),
  );
  dialog.showModal();
}

/** Make the dialog's own button work. */
export function startExamples() {
  byId("examples-close").addEventListener("click", () => byId("examples-dialog").close());
}
