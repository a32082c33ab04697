// Code to coloured pieces: comments, strings, numbers and keywords, by one regular expression a family of languages.

const STRINGS = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`;
const NUMBER = String.raw`\b(?:0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

function family(comment, string, keywords, flags = "") {
  const pattern = new RegExp(`(?<comment>${comment})|(?<string>${string})|(?<number>${NUMBER})|(?<word>${WORD})`, "g");
  return { pattern, keywords: new Set(keywords.split(" ")), folded: flags.includes("i") };
}

const SLASHES = String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`;
const HASH = String.raw`(?<![\w$&])#[^\n]*`;

const FAMILIES = {
  python: family(
    HASH, String.raw`"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRINGS}`,
    "and as assert async await break case class continue def del elif else except False finally for from global if "
    + "import in is lambda match None nonlocal not or pass raise return self True try while with yield",
  ),
  script: family(
    SLASHES, `\`(?:\\\\.|[^\`\\\\])*\`?|${STRINGS}`,
    "abstract any as async await boolean break case catch class const constructor continue debugger declare default "
    + "delete do else enum export extends false finally for from function get if implements import in instanceof "
    + "interface let new null number of private protected public readonly return set static string super switch this "
    + "throw true try type typeof undefined var void while with yield",
  ),
  c: family(
    `${SLASHES}|#\\s*(?:include|define|undef|ifdef|ifndef|if|else|elif|endif|pragma)[^\\n]*`, STRINGS,
    "abstract as async auto await bool boolean break byte case catch char class const constexpr continue crate default "
    + "defer do double dyn else enum extends extern false final finally float fn for func go if impl implements import "
    + "in int interface let long loop match mod move mut namespace new nil null nullptr override package private "
    + "protected pub public range ref return self short signed sizeof static string struct super switch template this "
    + "throw throws trait true try type typedef typename union unsafe unsigned use using var virtual void where while",
  ),
  shell: family(
    HASH, STRINGS,
    "case cd do done echo elif else esac exit export fi for function if in local read return set shift source sudo then "
    + "unset until while",
  ),
  sql: family(
    String.raw`--[^\n]*|\/\*[^]*?(?:\*\/|$)`, STRINGS,
    "add all alter and as asc between by case create cross delete desc distinct drop else end exists foreign from full "
    + "group having in index inner insert into is join key left like limit not null offset on or order outer primary "
    + "references right select set table then union unique update values view when where with",
    "i",
  ),
  data: family(HASH, STRINGS, "true false null yes no on off"),
  plain: family("$^", STRINGS, ""),
};

const LANGUAGES = {
  python: ["py", "python", "python3", "ipython", "pycon"],
  script: ["js", "javascript", "jsx", "mjs", "ts", "tsx", "typescript"],
  c: ["c", "h", "cpp", "c++", "cc", "cuda", "cs", "csharp", "go", "java", "kotlin", "php", "rs", "rust", "scala", "swift"],
  shell: ["bash", "console", "dockerfile", "fish", "make", "sh", "shell", "zsh", "r", "ruby", "rb", "perl"],
  sql: ["sql", "sqlite", "mysql", "postgresql"],
  data: ["ini", "json", "jsonc", "toml", "yaml", "yml"],
};
const FAMILY_OF = new Map(
  Object.entries(LANGUAGES).flatMap(([name, aliases]) => aliases.map((alias) => [alias, FAMILIES[name]])),
);

// [{kind, text}] that together are `code`; kind is null for what has no colour.
export function highlight(code, language) {
  const { pattern, keywords, folded } = FAMILY_OF.get(language.toLowerCase()) ?? FAMILIES.plain;
  if (!language) return [{ kind: null, text: code }];
  const pieces = [];
  let end = 0;
  for (const match of code.matchAll(pattern)) {
    const kind = kindOf(match.groups, keywords, folded);
    if (kind === null) continue;
    if (match.index > end) pieces.push({ kind: null, text: code.slice(end, match.index) });
    pieces.push({ kind, text: match[0] });
    end = match.index + match[0].length;
  }
  if (end < code.length) pieces.push({ kind: null, text: code.slice(end) });
  return pieces;
}

function kindOf({ comment, string, number, word }, keywords, folded) {
  if (comment !== undefined) return "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  return keywords.has(folded ? word.toLowerCase() : word) ? "keyword" : null;
}
