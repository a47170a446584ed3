defmodule Beamr.RealGuests.QuickJSTest do
  # QuickJS as npm's quickjs-wasi has it: a JavaScript engine with imports of its own beside those of
  # WASI. JavaScript's values are handles: addresses of the guest's.
  use Beamr.Case, async: true

  @moduletag :real_guests
  @moduletag timeout: 120_000

  setup_all do
    {:ok, compiled: Beamr.RealGuest.module!("quickjs")}
  end

  # A JavaScript function of a name in `functions` calls the Elixir function, with strings.
  defp engine(module, functions \\ %{}, opts \\ []) do
    call = fn wasm, name, length, _this, count, handles ->
      name = Beamr.IO.read!(wasm, name, length)
      {:ok, handles} = Beamr.IO.read_array(wasm, handles, :u32, count)
      string(wasm, Map.fetch!(functions, name).(Enum.map(handles, &to_text(wasm, &1))))
    end

    opts =
      Keyword.merge(
        [wasi: [], imports: %{"env" => %{"host_call" => call}}, stubs: :zero],
        opts
      )

    wasm = Beamr.instantiate!(module, opts)

    [0] = Beamr.call!(wasm, "qjs_init", [])

    for {name, _function} <- functions do
      [global] = Beamr.call!(wasm, "qjs_get_global", [])

      Beamr.IO.with_string!(wasm, name, fn pointer ->
        [function] = Beamr.call!(wasm, "qjs_new_host_function", [pointer, byte_size(name), 0])
        Beamr.call!(wasm, "qjs_set_prop_string", [global, pointer, function])
      end)
    end

    wasm
  end

  defp string(wasm, text) do
    Beamr.IO.with_bytes!(wasm, text, fn pointer, length ->
      hd(Beamr.call!(wasm, "qjs_new_string", [pointer, length]))
    end)
  end

  defp to_text(wasm, value) do
    [pointer] = Beamr.call!(wasm, "qjs_get_string", [value])
    text = Beamr.IO.read_string!(wasm, pointer)
    Beamr.call!(wasm, "qjs_free_cstring", [pointer])
    text
  end

  defp property(wasm, value, name) do
    Beamr.IO.with_string!(wasm, name, fn pointer ->
      [property] = Beamr.call!(wasm, "qjs_get_prop_string", [value, pointer])
      text = to_text(wasm, property)
      Beamr.call!(wasm, "qjs_free_value", [property])
      text
    end)
  end

  # `{:ok, text}`, or `{:error, {name, message}}` of the exception.
  defp eval(wasm, code, opts \\ []) do
    {:ok, result} =
      Beamr.IO.with_string(wasm, code, fn source ->
        Beamr.IO.with_string!(wasm, "test.js", fn file ->
          Beamr.call(wasm, "qjs_eval", [source, byte_size(code), file, 0], opts)
        end)
      end)

    with {:ok, [value]} <- result do
      case Beamr.call!(wasm, "qjs_is_exception", [value]) do
        [0] -> {:ok, to_text(wasm, value)}
        [1] -> {:error, exception(wasm)}
      end
    end
  end

  defp exception(wasm) do
    [exception] = Beamr.call!(wasm, "qjs_get_exception", [])

    case Beamr.call!(wasm, "qjs_is_error", [exception]) do
      [1] -> {property(wasm, exception, "name"), property(wasm, exception, "message")}
      [0] -> to_text(wasm, exception)
    end
  end

  test "evaluates JavaScript", %{compiled: module} do
    wasm = engine(module)
    assert eval(wasm, "1 + 2") == {:ok, "3"}
    assert eval(wasm, "[3, 1, 2].sort().map(n => n * 2).join()") == {:ok, "2,4,6"}
    assert eval(wasm, "JSON.stringify({a: [1, null, 'é']})") == {:ok, ~s|{"a":[1,null,"é"]}|}
    assert eval(wasm, "2n ** 100n") == {:ok, Integer.to_string(2 ** 100)}
    assert eval(wasm, "'été'.replace(/t(.)/u, '$1t')") == {:ok, "éét"}
  end

  test "keeps what was defined, in one engine and no other", %{compiled: module} do
    [one, other] = [engine(module), engine(module)]
    assert {:ok, _} = eval(one, "function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2) }")
    assert eval(one, "fib(15)") == {:ok, "610"}
    assert {:error, {"ReferenceError", message}} = eval(other, "fib(15)")
    assert message =~ "fib"
  end

  test "exceptions are data, and the engine goes on", %{compiled: module} do
    wasm = engine(module)
    assert {:error, {"SyntaxError", _message}} = eval(wasm, "let let = ;")
    assert eval(wasm, "throw new RangeError('too far')") == {:error, {"RangeError", "too far"}}
    assert {:error, {"TypeError", _message}} = eval(wasm, "null.x")
    assert eval(wasm, "throw 'a string'") == {:error, "a string"}
    assert eval(wasm, "40 + 2") == {:ok, "42"}
  end

  test "recursion without end is an exception, or a trap where JavaScript is granted too much",
       %{compiled: module} do
    recursion = "(function f() { return 1 + f() })()"
    wasm = engine(module)
    Beamr.call!(wasm, "qjs_set_max_stack_size", [64 * 1024])
    assert {:error, {"RangeError", message}} = eval(wasm, recursion)
    assert message =~ "stack"
    assert eval(wasm, "40 + 2") == {:ok, "42"}

    assert {:error, %Beamr.Trap{reason: :stack_overflow}} = eval(engine(module), recursion)
  end

  test "JavaScript calls Elixir, and Elixir JavaScript from there", %{compiled: module} do
    test = self()

    wasm =
      engine(module, %{
        "upcase" => fn [text] -> String.upcase(text) end,
        "note" => fn texts -> tap("", fn _ -> send(test, {:note, texts}) end) end
      })

    assert eval(wasm, "note('a', 1, [2, 3]); upcase('straße') + '!'") == {:ok, "STRASSE!"}
    assert_received {:note, ["a", "1", "2,3"]}
    # The string conversion of `toString` runs while the import does.
    assert eval(wasm, "upcase({toString: () => upcase('x') + 'y'})") == {:ok, "XY"}
  end

  test "promises are settled when their jobs are run", %{compiled: module} do
    wasm = engine(module)
    code = "var got; (async () => { got = await Promise.resolve('done') })(); String(got)"
    assert eval(wasm, code) == {:ok, "undefined"}
    run_jobs(wasm)
    assert eval(wasm, "got") == {:ok, "done"}
  end

  defp run_jobs(wasm) do
    if Beamr.call!(wasm, "qjs_is_job_pending", []) != [0] do
      Beamr.call!(wasm, "qjs_execute_pending_job", [])
      run_jobs(wasm)
    end
  end

  test "an endless loop is timed out", %{compiled: module} do
    wasm = engine(module)

    assert {:error, %Beamr.CallError{reason: :timeout}} =
             eval(wasm, "while (true) {}", timeout: 100)
  end

  test "the clock and randomness are those that are granted", %{compiled: module} do
    fixed = fn -> engine(module, %{}, wasi: [clock: ~U[2024-02-29 12:00:00Z], random: 7]) end
    assert eval(fixed.(), "new Date().toISOString()") == {:ok, "2024-02-29T12:00:00.000Z"}
    assert eval(fixed.(), "Math.random()") == eval(fixed.(), "Math.random()")
  end

  test "memory has its limit, and what needs more is told so", %{compiled: module} do
    wasm = engine(module, %{}, max_memory: 8 * 1024 * 1024)
    assert {:error, {name, message}} = eval(wasm, "'x'.repeat(2 ** 26).length")
    assert {name, message} == {"InternalError", "out of memory"}
    assert eval(wasm, "'x'.repeat(10)") == {:ok, "xxxxxxxxxx"}
  end
end
