defmodule Bench.Picture do
  @moduledoc false
  # Pictures of figures, as SVG: lines over time, one panel for each, and bars of ratios.

  @width 900
  @font ~s|font-family="sans-serif" font-size="12"|

  @doc """
  A panel for each of `{title, [value]}`, drawn from 0 to its greatest value. What comes before
  `warm_up` of the values is grey.
  """
  def lines(path, title, series, warm_up) do
    panel = 90

    panels =
      for {{name, values}, place} <- Enum.with_index(series) do
        panel(name, values, warm_up, 40 + place * panel, panel - 30)
      end

    write(path, title, 40 + length(series) * panel, panels)
  end

  defp panel(name, values, warm_up, top, height) do
    greatest = max(Enum.max(values), 1)
    step = (@width - 260) / max(length(values) - 1, 1)

    points =
      for {value, n} <- Enum.with_index(values) do
        "#{round1(200 + n * step)},#{round1(top + height - height * value / greatest)}"
      end

    {warm, rest} = Enum.split(points, warm_up)

    [
      ~s|<rect x="200" y="#{top}" width="#{@width - 260}" height="#{height}" fill="#f4f4f4"/>\n|,
      text(10, top + 15, name),
      text(10, top + 32, "greatest: #{greatest}"),
      polyline(warm ++ Enum.take(rest, 1), "#aaaaaa"),
      polyline(rest, "#1f6fb2")
    ]
  end

  defp polyline(points, colour) do
    points = Enum.join(points, " ")
    ~s|<polyline points="#{points}" fill="none" stroke="#{colour}" stroke-width="1.5"/>\n|
  end

  @doc """
  A bar for each of `{label, ratio}`, on a logarithmic scale: to the right of the line what takes
  longer than its baseline, to the left what takes less.
  """
  def bars(path, title, ratios) do
    middle = 560
    unit = 90
    clamp = fn tenfolds -> tenfolds |> max(-1.5) |> min(3.2) end

    bars =
      for {{label, ratio}, place} <- Enum.with_index(ratios) do
        y = 40 + place * 18
        length = unit * clamp.(:math.log10(ratio))
        colour = if ratio > 1.1, do: "#c56a2d", else: "#1f6fb2"

        [
          text(10, y + 11, label),
          ~s|<rect x="#{round1(middle + min(length, 0.0))}" y="#{y}" height="13" |,
          ~s|width="#{round1(max(abs(length), 1))}" fill="#{colour}"/>\n|,
          text(round(middle + max(length, 0.0)) + 5, y + 11, "#{round2(ratio)} x")
        ]
      end

    height = 60 + length(ratios) * 18
    line = ~s|<line x1="#{middle}" x2="#{middle}" y1="35" y2="#{height - 20}" stroke="#888"/>\n|
    write(path, title, height, [bars, line])
  end

  defp write(path, title, height, contents) do
    File.mkdir_p!(Path.dirname(path))

    File.write!(path, [
      ~s|<svg xmlns="http://www.w3.org/2000/svg" width="#{@width}" height="#{height}" |,
      ~s|viewBox="0 0 #{@width} #{height}">\n<rect width="100%" height="100%" fill="white"/>\n|,
      text(10, 22, title),
      contents,
      "</svg>\n"
    ])
  end

  defp text(x, y, text), do: ~s|<text x="#{x}" y="#{y}" #{@font}>#{escape(text)}</text>\n|

  defp escape(text) do
    text
    |> String.replace("&", "&amp;")
    |> String.replace("<", "&lt;")
    |> String.replace(">", "&gt;")
  end

  defp round1(number), do: Float.round(number / 1, 1)
  defp round2(number), do: Float.round(number / 1, 2)
end
