//! What is rewritten in a template's source before it is parsed, where Python's Jinja reads it otherwise than minijinja:
//! ends of lines, `{% generation %}`, the operators `%` and `~`, which act on texts as Python prints them, `+` where it may
//! escape a text, comparisons, which are paid for, and loops over what has a length in Python only.

use minijinja::machinery::{Span, Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Filter that stands for `%`.
pub(super) const REMAINDER: &str = "__remainder__";
/// Function that stands for a chain of `~`.
pub(super) const CONCAT: &str = "__concat__";
/// Function that stands for a chain of `+`.
pub(super) const SUM: &str = "__sum__";
/// Function around what is compared with something.
pub(super) const COMPARED: &str = "__compared__";
/// Function around what a loop goes through.
pub(super) const ITEMS: &str = "__items__";

/// The source as minijinja has to get it. What cannot be cut into tokens stays as it is: the parser says what is wrong.
pub(super) fn rewritten(source: &str, syntax: SyntaxConfig) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let tokens: Result<Vec<_>, _> = tokenize(&source, false, syntax).collect();
    let Ok(tokens) = tokens else { return source };
    let mut rewriter = Rewriter {
        source: &source,
        edits: Vec::new(),
        frames: Vec::new(),
        looped: Looped::Nothing,
        escapes: tokens
            .windows(2)
            .any(|pair| marks_as_safe(&pair[0].0, &pair[1].0)),
    };
    for at in 0..tokens.len() {
        rewriter.token(&tokens, at);
    }
    let edits = rewriter.edits;
    applied(&source, edits)
}

/// One change: `with` stands for what lies between the offsets.
struct Edit {
    start: usize,
    end: usize,
    /// Of those at one place: what ends an operand comes first, what begins one last, and the outermost first of these.
    order: isize,
    with: String,
}

fn applied(source: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.start, edit.order));
    let mut out = String::with_capacity(source.len() + 16 * edits.len());
    let mut done = 0;
    for edit in edits {
        out.push_str(source.get(done..edit.start).unwrap_or_default());
        out.push_str(&edit.with);
        done = done.max(edit.end);
    }
    out.push_str(source.get(done..).unwrap_or_default());
    out
}

/// An expression between brackets, as far as it has been read.
#[derive(Default)]
struct Frame {
    /// Where the chain of `+` and `-` begins that is being read.
    sum: Option<usize>,
    /// Whether a call stands for a part of it that has only `+`.
    sum_open: bool,
    /// Where the operand of `+` begins.
    sum_operand: Option<usize>,
    /// The same of `~`.
    concat_operand: Option<usize>,
    /// Whether a chain of `~` is open.
    concat_open: bool,
    /// Whether the right side of a `%` is open.
    remainder_open: bool,
}

struct Rewriter<'s> {
    source: &'s str,
    edits: Vec<Edit>,
    frames: Vec<Frame>,
    looped: Looped,
    /// Whether there are texts that are marked as safe, to which `+` adds others escaped.
    escapes: bool,
}

/// How far the statement of a loop has been read.
#[derive(PartialEq)]
enum Looped {
    /// There is none, or what it goes through has been read.
    Nothing,
    /// Its variables.
    Variables,
    /// What it goes through.
    Items,
}

/// What a token is to the operators around it.
enum Role {
    Opens,
    Closes,
    /// Ends what `%` and `~` bind.
    Boundary,
    Comparison,
    Plus,
    Minus,
    Tilde,
    Remainder,
    /// `*`, `/` and `//`, which bind as `%` does.
    Product,
    Operand,
}

impl Rewriter<'_> {
    fn token(&mut self, tokens: &[(Token<'_>, Span)], at: usize) {
        let (token, span) = &tokens[at];
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        let before = at.checked_sub(1).map(|at| &tokens[at]);
        let before_end = before.map_or(0, |(_, span)| span.end_offset as usize);
        match token {
            Token::TemplateData(_) => return,
            Token::Ident(name @ ("generation" | "endgeneration"))
                if matches!(before, Some((Token::BlockStart, _)))
                    && matches!(tokens.get(at + 1), Some((Token::BlockEnd, _))) =>
            {
                self.replace(start, end, &name.replace("generation", "with"));
            }
            Token::Str(_) | Token::String(_) => self.string(start, end),
            _ => {}
        }
        let is_variables = self.frames.len() == 1 && self.looped == Looped::Variables;
        if self.frames.len() == 1 {
            self.loop_statement(tokens, at);
        }
        match role(tokens, at) {
            // The `in` of a loop.
            Role::Comparison if is_variables => self.boundary(before_end),
            Role::Comparison => self.comparison(before_end),
            Role::Opens => {
                self.begin(start);
                self.frames.push(Frame::default());
            }
            Role::Closes => {
                self.boundary(before_end);
                self.frames.pop();
            }
            Role::Boundary => self.boundary(before_end),
            Role::Plus => self.plus(before_end, start, end),
            Role::Minus => self.minus(before_end),
            Role::Tilde => self.tilde(before_end, start, end),
            Role::Remainder => self.remainder(before_end, start, end),
            Role::Product => self.close_remainder(before_end),
            Role::Operand => self.begin(start),
        }
    }

    /// Puts a call around what a loop goes through: all from `in` to `if`, `recursive` or the end.
    fn loop_statement(&mut self, tokens: &[(Token<'_>, Span)], at: usize) {
        let before = at.checked_sub(1).map(|at| &tokens[at]);
        let before_end = before.map_or(0, |(_, span)| span.end_offset as usize);
        match (&tokens[at].0, &self.looped) {
            (Token::Ident("for"), _) if matches!(before, Some((Token::BlockStart, _))) => {
                self.looped = Looped::Variables;
            }
            (Token::Ident("in"), Looped::Variables) => {
                self.looped = Looped::Items;
                let end = tokens[at].1.end_offset as usize;
                self.insert(end, 1, format!(" {ITEMS}("));
            }
            (Token::BlockEnd, Looped::Items) => {
                self.looped = Looped::Nothing;
                self.close(before_end);
            }
            (Token::Ident("if" | "recursive"), Looped::Items) if !is_name(tokens, at) => {
                self.looped = Looped::Nothing;
                self.close(before_end);
            }
            _ => {}
        }
    }

    /// An operand begins here, if none has begun.
    fn begin(&mut self, start: usize) {
        if let Some(frame) = self.frames.last_mut() {
            frame.sum.get_or_insert(start);
            frame.sum_operand.get_or_insert(start);
            frame.concat_operand.get_or_insert(start);
        }
    }

    fn tilde(&mut self, before_end: usize, start: usize, end: usize) {
        self.close_remainder(before_end);
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        frame.concat_operand = None;
        let opens = frame.sum_operand.filter(|_| !frame.concat_open);
        frame.concat_open |= opens.is_some();
        if let Some(at) = opens {
            self.open(at, format!("{CONCAT}("));
        }
        self.replace(start, end, ",");
    }

    fn remainder(&mut self, before_end: usize, start: usize, end: usize) {
        self.close_remainder(before_end);
        let frame = self.frames.last_mut();
        let Some((frame, at)) = frame.and_then(|frame| frame.concat_operand.map(|at| (frame, at)))
        else {
            return;
        };
        frame.remainder_open = true;
        self.open(at, "(".to_owned());
        self.replace(start, end, &format!(")|{REMAINDER}("));
    }

    fn close_remainder(&mut self, end: usize) {
        let open = self
            .frames
            .last_mut()
            .map(|frame| &mut frame.remainder_open);
        if open.is_some_and(std::mem::take) {
            self.close(end);
        }
    }

    /// An operand of `+` ends here.
    fn close_operand(&mut self, end: usize) {
        self.close_remainder(end);
        let Some(frame) = self.frames.last_mut() else {
            return;
        };
        frame.sum_operand = None;
        frame.concat_operand = None;
        if std::mem::take(&mut frame.concat_open) {
            self.close(end);
        }
    }

    fn plus(&mut self, before_end: usize, start: usize, end: usize) {
        self.close_operand(before_end);
        let escapes = self.escapes;
        let frame = self.frames.last_mut().filter(|_| escapes);
        let Some((frame, at)) = frame.and_then(|frame| frame.sum.map(|at| (frame, at))) else {
            return;
        };
        if !std::mem::replace(&mut frame.sum_open, true) {
            self.open(at, format!("{SUM}("));
        }
        self.replace(start, end, ",");
    }

    fn minus(&mut self, before_end: usize) {
        self.close_operand(before_end);
        let open = self.frames.last_mut().map(|frame| &mut frame.sum_open);
        if open.is_some_and(std::mem::take) {
            self.close(before_end);
        }
    }

    fn comparison(&mut self, end: usize) {
        self.minus(end);
        if let Some(at) = self.frames.last_mut().and_then(|frame| frame.sum.take()) {
            self.open(at, format!("{COMPARED}("));
            self.close(end);
        }
    }

    fn boundary(&mut self, end: usize) {
        self.minus(end);
        if let Some(frame) = self.frames.last_mut() {
            frame.sum = None;
        }
    }

    fn open(&mut self, at: usize, with: String) {
        // The later one is the outer one.
        let order = isize::MAX - self.edits.len() as isize;
        self.insert(at, order, with);
    }

    fn close(&mut self, at: usize) {
        self.insert(at, -1, ")".to_owned());
    }

    fn insert(&mut self, at: usize, order: isize, with: String) {
        self.edits.push(Edit {
            start: at,
            end: at,
            order,
            with,
        });
    }

    fn replace(&mut self, start: usize, end: usize, with: &str) {
        self.edits.push(Edit {
            start,
            end,
            order: 0,
            with: with.to_owned(),
        });
    }

    /// The escapes of Python's that minijinja does not know, as what they stand for.
    fn string(&mut self, start: usize, end: usize) {
        let literal = self.source.get(start..end).unwrap_or_default();
        let mut rest = literal.char_indices();
        while let Some((at, letter)) = rest.next() {
            if letter != '\\' {
                continue;
            }
            let Some((_, escape)) = rest.next() else {
                return;
            };
            let (from, digits) = (start + at, literal.get(at + 2..at + 10));
            match (escape, digits.map(|hex| u32::from_str_radix(hex, 16))) {
                ('\n', _) => self.replace(from, from + 2, ""),
                ('a', _) => self.replace(from, from + 2, "\u{7}"),
                ('v', _) => self.replace(from, from + 2, "\u{b}"),
                ('U', Some(Ok(code))) => {
                    if let Some(letter) = char::from_u32(code) {
                        self.replace(from, from + 10, &letter.to_string());
                    }
                }
                _ => {}
            }
        }
    }
}

fn role(tokens: &[(Token<'_>, Span)], at: usize) -> Role {
    let before = at.checked_sub(1).map(|at| &tokens[at].0);
    match &tokens[at].0 {
        Token::ParenOpen
        | Token::BracketOpen
        | Token::BraceOpen
        | Token::VariableStart
        | Token::BlockStart => Role::Opens,
        Token::ParenClose
        | Token::BracketClose
        | Token::BraceClose
        | Token::VariableEnd
        | Token::BlockEnd => Role::Closes,
        Token::Tilde => Role::Tilde,
        Token::Mod => Role::Remainder,
        Token::Mul | Token::Div | Token::FloorDiv => Role::Product,
        Token::Minus if before.is_some_and(ends_operand) => Role::Minus,
        Token::Plus => Role::Plus,
        Token::Comma | Token::Colon | Token::Assign => Role::Boundary,
        Token::Eq | Token::Ne | Token::Gt | Token::Gte | Token::Lt | Token::Lte => Role::Comparison,
        // `not` before `in` ends the left side, and `in` then finds none.
        Token::Ident("in") if !is_name(tokens, at) => Role::Comparison,
        Token::Ident("not")
            if matches!(tokens.get(at + 1), Some((Token::Ident("in"), _)))
                && !is_name(tokens, at) =>
        {
            Role::Comparison
        }
        // A statement's own word.
        Token::Ident(_) if matches!(before, Some(Token::BlockStart)) => Role::Boundary,
        Token::Ident("and" | "or" | "if" | "else" | "not" | "recursive")
            if !is_name(tokens, at) =>
        {
            Role::Boundary
        }
        _ => Role::Operand,
    }
}

/// Whether a filter marks its text as one that is not to be escaped.
fn marks_as_safe(pipe: &Token<'_>, name: &Token<'_>) -> bool {
    let marks = ["safe", "escape", "e", "forceescape"];
    matches!((pipe, name), (Token::Pipe, Token::Ident(name)) if marks.contains(name))
}

/// Whether a word is the name of an attribute, a filter or a test, or the `not` of one.
fn is_name(tokens: &[(Token<'_>, Span)], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|at| &tokens[at].0);
    match before(1) {
        Some(Token::Dot | Token::Pipe | Token::Ident("is")) => true,
        Some(Token::Ident("not")) => matches!(before(2), Some(Token::Ident("is"))),
        _ => false,
    }
}

/// Whether a `-` after it is an operator between two operands.
fn ends_operand(token: &Token<'_>) -> bool {
    match token {
        Token::Ident(name) => !matches!(*name, "and" | "or" | "if" | "else" | "not" | "in"),
        Token::Str(_)
        | Token::String(_)
        | Token::Int(_)
        | Token::Int128(_)
        | Token::Float(_)
        | Token::ParenClose
        | Token::BracketClose
        | Token::BraceClose => true,
        _ => false,
    }
}
